"""The explorer itself, on models small enough to count by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import pytest

from tests.model.explorer import REACHES_END, Model, Step, TooLarge, explore, walk


class Counter(Model[int]):
    """Counts by one or two from zero to `top`; `trap` can be entered and not left."""

    def __init__(self, top: int, *, forbidden: int | None = None, trap: int | None = None) -> None:
        self.top, self.trap = top, trap
        self.invariants: Mapping[str, Callable[[int], bool]] = {"allowed": lambda state: state != forbidden}

    def initial(self) -> int:
        return 0

    def steps(self, state: int) -> Iterable[Step[int]]:
        if state == self.trap:
            yield Step("crash", 0, own=False)
            return
        for number in (1, 2):
            if state + number <= self.top:
                yield Step(f"add {number}", state + number)

    def is_end(self, state: int) -> bool:
        return state == self.top


def test_every_state_is_visited_once() -> None:
    found = explore(Counter(10))
    assert (found.states, found.steps, found.depth, found.violation) == (11, 19, 5, None)
    assert found.kinds == {"add"}


def test_the_shortest_trace_is_told() -> None:
    violation = explore(Counter(10, forbidden=5)).violation
    assert violation is not None
    assert violation.broken == {"allowed"}
    assert len(violation.steps) == 3
    assert sum(int(name[-1]) for name in violation.steps) == 5
    assert violation.trace[-1][1] == 5
    assert "violated: allowed; after 3 steps" in str(violation)


def test_a_violated_start_has_an_empty_trace() -> None:
    violation = explore(Counter(10, forbidden=0)).violation
    assert violation is not None
    assert violation.steps == []


def test_a_state_that_only_a_fault_leads_out_of_is_stuck() -> None:
    violation = explore(Counter(10, trap=7)).violation
    assert violation is not None
    assert violation.broken == {REACHES_END}
    assert violation.trace[-1][1] == 7


def test_a_dead_end_is_stuck() -> None:
    class Odd(Counter):
        def is_end(self, state: int) -> bool:
            return state == 11

    violation = explore(Odd(10)).violation
    assert violation is not None
    assert violation.broken == {REACHES_END}


def test_an_exploration_that_cannot_be_complete_fails() -> None:
    with pytest.raises(TooLarge):
        explore(Counter(1000), most_states=100)


def test_a_walk_ends_where_nothing_more_can_happen() -> None:
    assert [step.state for step in walk(Counter(4), lambda _: 0, 100)] == [1, 2, 3, 4]
    assert [step.state for step in walk(Counter(4), lambda n: n - 1, 1)] == [2]
