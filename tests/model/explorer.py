"""A small explicit-state model checker: every state that can be reached, looked at once, breadth first.

A model is a start, the steps that lead from a state to others, invariants that hold in every state, and an *end* that
can always still be reached. What is found is printed as the shortest trace of named steps that leads there.

    found = explore(model)
    assert found.violation is None, found.violation

States are immutable and hashable. An exploration is complete or it fails: one that was cut short would prove nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

S = TypeVar("S", bound=Hashable)

#: the one thing that is no invariant of a state: from each of them the end can be reached by the system's own steps
REACHES_END = "the end stays in reach"
MOST_STATES = 5_000_000


class TooLarge(AssertionError):
    """The model has more states than the exploration may hold."""


class Step(NamedTuple, Generic[S]):
    """One atomic step. `own`: the system takes it by itself sooner or later; False: a fault, or somebody's wish."""

    name: str
    state: S
    own: bool = True


class Model(ABC, Generic[S]):
    """What is explored."""

    #: name of each invariant to its predicate: True when it holds
    invariants: Mapping[str, Callable[[S], bool]]

    @abstractmethod
    def initial(self) -> S:
        """The start."""

    @abstractmethod
    def steps(self, state: S) -> Iterable[Step[S]]:
        """Everything that can happen next. A step that changes nothing may be left in."""

    @abstractmethod
    def is_end(self, state: S) -> bool:
        """Whether everything that was promised is done here."""


@dataclass(frozen=True)
class Violation(Generic[S]):
    """What does not hold, and the shortest way there. The first state of the trace is the start."""

    broken: frozenset[str]
    trace: Sequence[tuple[str, S]]

    @property
    def steps(self) -> list[str]:
        """Names of the steps, in order."""
        return [name for name, _ in self.trace[1:]]

    def __str__(self) -> str:
        lines = [f"violated: {', '.join(sorted(self.broken))}; after {len(self.trace) - 1} steps"]
        lines += [f"  {number:3} {name}" for number, (name, _) in enumerate(self.trace)]
        return "\n".join([*lines, f"      {self.trace[-1][1]}"])


@dataclass(frozen=True)
class Exploration(Generic[S]):
    """The outcome: sizes of what was seen, and the first violation if there is one."""

    states: int
    steps: int
    depth: int
    violation: Violation[S] | None
    kinds: frozenset[str]  #: of steps that were taken: their names up to the first space


class _Graph(Generic[S]):
    """The states seen so far, by number in breadth-first order, and how each was reached first."""

    def __init__(self, start: S) -> None:
        self.states: list[S] = [start]
        self.numbers: dict[S, int] = {start: 0}
        self.reached: list[tuple[int, str]] = [(0, "start")]
        self.depths: list[int] = [0]
        #: for each state the numbers of those that lead to it by a step of the system's own
        self.before: list[list[int]] = [[]]

    def add(self, origin: int, step: Step[S]) -> None:
        """Note a step, and its state when that is new."""
        number = self.numbers.get(step.state)
        if number is None:
            number = self.numbers[step.state] = len(self.states)
            self.states.append(step.state)
            self.reached.append((origin, step.name))
            self.depths.append(self.depths[origin] + 1)
            self.before.append([])
        if step.own:
            self.before[number].append(origin)

    def trace(self, number: int) -> list[tuple[str, S]]:
        """The shortest way from the start."""
        trace = [(self.reached[number][1], self.states[number])]
        while number:
            number = self.reached[number][0]
            trace.append((self.reached[number][1], self.states[number]))
        return trace[::-1]


def explore(model: Model[S], most_states: int = MOST_STATES) -> Exploration[S]:
    """Visit every reachable state. Stops at the first violation; raises TooLarge beyond `most_states`."""
    graph = _Graph(model.initial())
    names: set[str] = set()
    steps = number = 0

    def outcome(broken: Iterable[str], at: int) -> Exploration[S]:
        violation = Violation(frozenset(broken), graph.trace(at)) if broken else None
        kinds = frozenset(name.partition(" ")[0] for name in names)
        return Exploration(len(graph.states), steps, graph.depths[-1], violation, kinds)

    while number < len(graph.states):
        state = graph.states[number]
        broken = [name for name, holds in model.invariants.items() if not holds(state)]
        if broken:
            return outcome(broken, number)
        for step in model.steps(state):
            steps += 1
            names.add(step.name)
            graph.add(number, step)
        if len(graph.states) > most_states:
            raise TooLarge(f"more than {most_states} states")
        number += 1
    stuck = _first_without_end(graph, model)
    return outcome([], 0) if stuck is None else outcome([REACHES_END], stuck)


def _first_without_end(graph: _Graph[S], model: Model[S]) -> int | None:
    """The first state from which the system, left alone, cannot come to the end."""
    reaches = bytearray(model.is_end(state) for state in graph.states)
    waiting = deque(number for number, end in enumerate(reaches) if end)
    while waiting:
        for origin in graph.before[waiting.popleft()]:
            if not reaches[origin]:
                reaches[origin] = 1
                waiting.append(origin)
    stuck = reaches.find(0)
    return None if stuck < 0 else stuck


def walk(model: Model[S], choose: Callable[[int], int], length: int) -> Iterator[Step[S]]:
    """One path through the model: at each state `choose(n)` picks one of its n steps that change something."""
    state = model.initial()
    for _ in range(length):
        open_steps = [step for step in model.steps(state) if step.state != state]
        if not open_steps:
            return
        step = open_steps[choose(len(open_steps))]
        state = step.state
        yield step
