"""``whose``, ``take`` and ``release``: the commands that judge and settle by the journals.

The exit status of ``whose`` is its answer: 0 for this copy, 3 for the other one, 4 where it can't
be told from what is known; 1 and 2 are errors, as with every command. A reactor is imported only to
ask another server.
"""

from __future__ import annotations

import getpass
import json
import os
import sys

from flexmigrate.cli.requests import SettleConfig, WhoseConfig
from flexmigrate.errors import FlexmigrateError
from flexmigrate.migration.ownership import journal, resolve
from flexmigrate.migration.ownership.journal import Record
from flexmigrate.migration.ownership.resolve import CopyVerdict
from flexmigrate.migration.ownership.status import look
from flexmigrate.wire.handover import NO_ID, Answer, State

STATUS = {CopyVerdict.THIS: 0, CopyVerdict.OTHER: 3, CopyVerdict.UNKNOWN: 4}


def run_whose(config: WhoseConfig) -> int:
    """Print which copy is canonical, and why; return the exit status.

    :raises FlexmigrateError: a journal can't be trusted, or the other side can't be asked.
    """
    mine = look(config.file)
    if mine.state is State.NONE and config.peer is None and config.peer_journal is None:
        _expect_image(config.file)
    judgement = resolve.judge(mine, _peer(config, mine.record))
    if config.json:
        answer = {
            "image": mine.path,
            "state": mine.state.name.lower(),
            "incomplete": mine.is_incomplete,
            "canonical": judgement.verdict.value,
            "reason": judgement.sentence,
        }
        print(json.dumps(answer))
    else:
        print(judgement.sentence)
    return STATUS[judgement.verdict]


def _expect_image(path: str) -> None:
    """See that there is something to judge: a name with a mistake in it is nobody's image."""
    if not os.path.exists(path):
        raise FlexmigrateError(f"{path}: there is no such image, and no journal of one")


def _peer(config: WhoseConfig, mine: Record | None) -> Record | None:
    if config.peer_journal is not None:
        return resolve.load_peer(config.peer_journal)
    if config.peer is None:
        return None
    from flexmigrate.cli.transfer import ask_peer

    answer = ask_peer(config, _named_by(mine))
    if answer.state is State.NONE:
        raise FlexmigrateError(f"the server at {config.peer} knows of no handover of that image")
    return record_of(answer)


def _named_by(record: Record | None) -> list[bytes]:
    """Return the sessions that a record is about."""
    if record is None:
        return []
    sessions = (record.session, record.origin, *record.superseded)
    return [each for each in sessions if each != NO_ID]


def record_of(answer: Answer) -> Record:
    """Return the record that the other side's journal has. Of an older server's, and of one that a
    newer server keeps in another way, less is known.

    :raises FlexmigrateError: what it tells isn't one.
    """
    if answer.journal:
        try:
            return resolve.displayable(journal.decode(answer.journal))
        except journal.NewerError:
            pass
        except ValueError as error:
            raise FlexmigrateError(f"the journal that the other server told: {error}") from error
    return Record(
        answer.state,
        session=answer.session,
        attempt=answer.attempt,
        size=answer.size,
        peer="here",
    )


def run_settle(config: SettleConfig) -> int:
    """Say what ``take`` or ``release`` is about to do, ask, and do it; return the exit status.

    :raises FlexmigrateError: it can't be done.
    """
    state = State.OWNER if config.take else State.DONE
    image_state, fault = resolve.look_to_settle(config.file)
    if fault is None and image_state.state is State.NONE:
        _expect_image(config.file)
    for sentence in (*([fault] if fault else []), *resolve.consequences(image_state, state)):
        print(sentence)
    if not config.sure and not _confirmed():
        print("Nothing was done.")
        return 1
    print(resolve.settle(config.file, state, f"{_user()} on {os.uname().nodename}"))
    return 0


def _confirmed() -> bool:
    print("Is that what you mean? Answer 'yes': ", end="", flush=True)
    return sys.stdin.readline().strip() == "yes"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # an id that has no name
        return f"user {os.geteuid()}"
