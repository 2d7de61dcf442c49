"""Where samples of perf's are put: by what stands in their stacks."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from bench.samples import COPYING, FILE, NETWORK, OTHER, OWN, PLACES, WAITING, count, sampled
from bench.stage import Unmeasured
from support.processes import Children

ENTRY = ("do_syscall_64", "entry_SYSCALL_64_after_hwframe", "[unknown]")

STACKS = {
    ("_copy_to_iter", "tcp_recvmsg_locked", "tcp_recvmsg", "sock_recvmsg", *ENTRY): COPYING,
    ("copy_folio_from_iter_atomic", "generic_perform_write", "vfs_write", *ENTRY): COPYING,
    ("sock_rfree", "tcp_recvmsg_locked", "tcp_recvmsg", "sock_recvmsg", *ENTRY): NETWORK,
    # By read(2), which is the file's call elsewhere.
    ("skb_release_data", "unix_stream_recvmsg", "sock_read_iter", "vfs_read", *ENTRY): NETWORK,
    ("tcp_ack", "tcp_sendmsg", "__sys_sendto", "__x64_sys_sendto", *ENTRY): NETWORK,
    ("filemap_splice_read", "do_sendfile", "__x64_sys_sendfile64", *ENTRY): NETWORK,
    ("mark_buffer_dirty", "ext4_buffered_write_iter", "vfs_write", *ENTRY): FILE,
    ("filemap_get_pages", "vfs_iter_read", "do_preadv", "__x64_sys_preadv2", *ENTRY): FILE,
    ("schedule", "do_epoll_wait", "__x64_sys_epoll_wait", *ENTRY): WAITING,
    ("__schedule", "futex_wait", "__x64_sys_futex", *ENTRY): WAITING,
    ("fdget", "__x64_sys_pwrite64", *ENTRY): OTHER,
    ("split_folio_to_list", "madvise_cold", "__x64_sys_madvise", *ENTRY): FILE,
    ("jbd2_complete_transaction", "do_fsync", "__x64_sys_fdatasync", *ENTRY): FILE,
    ("filemap_read", "io_read", "io_issue_sqe", "io_wq_worker", "ret_from_fork"): FILE,
    ("schedule", "kthread", "ret_from_fork_asm"): OTHER,
    ("_PyEval_EvalFrameDefault", "[unknown]"): OWN,
    # Somebody's interrupt, in the middle of it.
    ("handle_softirqs", "asm_sysvec_apic_timer_interrupt", "_PyEval_EvalFrameDefault"): OWN,
}


@pytest.mark.parametrize(("stack", "place"), STACKS.items(), ids=lambda each: str(each[0]))
def test_a_stack_has_its_place(stack: tuple[str, ...], place: str) -> None:
    lines = ["", *(f"\tffffffff81b6ab30 {name}" for name in stack), ""]
    assert count([*lines, *lines]) == {**dict.fromkeys(PLACES, 0), place: 2}


BUSY = """
import itertools, os, sys
page = bytes(65536)
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
for number in itertools.count():
    for _ in range(1000):
        os.pwrite(file, page, 0)
    print("round", number, flush=True)
"""


@pytest.mark.skipif(shutil.which("perf") is None or os.geteuid() != 0, reason="needs perf and root")
def test_a_process_that_writes_is_seen_to_write(children: Children, tmp_path: Path) -> None:
    child = children.start(sys.executable, "-c", BUSY, str(tmp_path / "file"))
    child.wait_for("^round 0$")
    try:
        with sampled(child.pid, tmp_path) as seen:
            child.wait_for(f"^round {len(child.lines) + 10}$")
    except Unmeasured as error:
        pytest.skip(str(error))  # a container's root may not look
    assert seen[COPYING] + seen[FILE] > sum(seen.values()) / 2
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_who_is_not_root_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(Unmeasured, match="only root"), sampled(os.getpid(), tmp_path):
        pass
