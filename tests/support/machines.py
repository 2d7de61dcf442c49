"""State machines as tables: which pairs of state and input were declared, and which were not."""

from __future__ import annotations

from typing import Any

Pair = tuple[str, str]


def inputs_of(protocol: type) -> set[str]:
    """Return the names of a machine's inputs."""
    return {
        name
        for name, value in vars(protocol).items()
        if callable(value) and not name.startswith("__") and name != "_abc_impl"
    } - {"_proto_hook", "_no_init_or_replace_init"}


def transitions(machine: Any) -> dict[Pair, str]:
    """Return where each declared pair of state and input leads, for a machine of Automat's."""
    return {
        (old.name, name): new.name
        for old, name, new, _ in machine.__automat_automaton__.allTransitions()
    }


def states(machine: Any) -> set[str]:
    """Return the names of all states that a transition leaves or enters."""
    found = transitions(machine)
    return {state for state, _ in found} | set(found.values())


def state_of(instance: Any) -> str:
    """Return the name of the state that a machine is in."""
    name: str = instance.__automat_transitioner__._state.name
    return name


def undeclared(machine: Any, protocol: type) -> set[Pair]:
    """Return the pairs that were not declared: an input there would be an error."""
    pairs = {(state, name) for state in states(machine) for name in inputs_of(protocol)}
    return pairs - set(transitions(machine))
