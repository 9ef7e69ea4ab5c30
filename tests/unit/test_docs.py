"""The documentation holds: its commands run and print what they are said to, names exist, links lead somewhere.

`tests/documents.py` says how blocks are run. Those of docs/howto and docs/jetstream.md need Go, Node
or the nats command, and are run by tests/clients/test_howto.py.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from requeue_client.cli import main
from requeue_protocol.headers import POLICY_HEADERS
from requeue_protocol.policy import QueuePolicy
from requeue_worker.nats_settings import NatsSettings
from requeue_worker.settings import Settings

from tests.documents import DOCUMENTS, NEED_TOOLS, ROOT, Shell, blocks_of, prose_of, relative, run_blocks

RUNNABLE = [
    document
    for document in DOCUMENTS
    if document not in NEED_TOOLS and any(block.language == "console" for block in blocks_of(document))
]


# -- commands ----------------------------------------------------------------------------------------------------


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(tmp_path)
    yield shell
    shell.end()


@pytest.mark.parametrize("document", RUNNABLE, ids=relative)
def test_commands_of_document_run_and_print_what_it_says(document: Path, shell: Shell) -> None:
    run_blocks(shell, blocks_of(document))


def test_every_python_block_is_a_file_that_a_command_runs() -> None:
    for document in DOCUMENTS:
        blocks = blocks_of(document)
        console = "\n".join(block.text for block in blocks if block.language == "console")
        for block in blocks:
            if block.language == "python":
                ast.parse(block.text)
                assert block.file_name, f"{relative(document)}: a python block without a name cannot be run"
                assert f"python {block.file_name}" in console, (
                    f"{relative(document)}: {block.file_name} is not run"
                )


def test_readme_names_make_targets_that_exist() -> None:
    readme, makefile = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    for target in re.findall(r"^    make (\w+)", readme, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_what_is_installed_is_this_directory_with_extras_that_exist() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    installed = [
        line.split("#")[0].split()[2]
        for document in DOCUMENTS
        for line in document.read_text().splitlines()
        if line.startswith("pip install ")
    ]
    assert installed
    for what in installed:
        directory = re.fullmatch(r"'?\.(?:\[(\w+)\]')?", what)
        assert directory, f"pip install {what}"
        assert directory[1] is None or re.search(rf"^{directory[1]} = \[", project, re.MULTILINE), what


def test_commands_that_take_too_long_to_run_here_are_ones_that_there_are() -> None:
    lines = [
        line
        for document in DOCUMENTS
        for block in blocks_of(document)
        if block.language == "sh"
        for line in block.text.splitlines()
        if line.startswith("requeue ")
    ]
    assert lines
    for line in lines:
        command: click.Command = main
        words = shlex.split(line, comments=True)[1:]
        try:
            while isinstance(command, click.Group):
                name, found, words = command.resolve_command(click.Context(command), words)
                assert name and found, line
                command = found
            command.make_context(command.name, words)
        except click.UsageError as error:
            pytest.fail(f"{line}: {error.format_message()}")


def test_headers_in_examples_for_other_clients_are_policy_headers() -> None:
    said = {
        name
        for document in DOCUMENTS
        for name in re.findall(r"-H ['\"]?(Requeue-[A-Za-z-]+):", document.read_text())
    }
    assert said
    assert said <= set(POLICY_HEADERS)


# -- links -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
def test_links_of_document_lead_to_files_and_headings_that_exist(document: Path) -> None:
    prose = prose_of(document)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if target.startswith(("http://", "https://")):
            continue
        name, _, heading = target.partition("#")
        file = document.parent / name if name else document
        assert file.exists(), f"{relative(document)} links to {target}"
        if heading:
            assert heading in anchors_of(file), f"{relative(document)} links to {target}"


def anchors_of(file: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_decision_stands_in_the_index() -> None:
    index = (ROOT / "docs/adr/README.md").read_text()
    files = sorted(path.name for path in (ROOT / "docs/adr").glob("0*.md"))
    assert re.findall(r"\((0[^)]+\.md)\)", index) == files
    for name in files:
        text = (ROOT / "docs/adr" / name).read_text()
        assert re.findall(r"^## (\w+)", text, re.MULTILINE) == ["Context", "Decision", "Consequences"], name


# -- faults ------------------------------------------------------------------------------------------------------


def rows_of_faults() -> list[list[str]]:
    section = (ROOT / "docs/operations.md").read_text().partition("\n## Faults\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[1:]]


def test_every_row_of_the_faults_names_tests_that_exist() -> None:
    written = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)\(", path.read_text(), re.MULTILINE)
    }
    rows = rows_of_faults()
    assert len(rows) > 10
    for row in rows:
        assert len(row) == 5, row
        assert all(row), row
        tests = re.findall(r"`(test_\w+)`", row[-1])
        assert tests, row
        assert set(tests) <= written, (row[0], set(tests) - written)


# -- architecture ------------------------------------------------------------------------------------------------

ARCHITECTURE = (ROOT / "docs/architecture.md").read_text()
WORKER = ROOT / "worker/requeue_worker"


def edges_of_the_table() -> list[str]:
    return re.findall(r"^\| ([a-z]) \w", ARCHITECTURE, re.MULTILINE)


def test_edges_of_the_diagram_are_those_of_the_table_the_code_and_the_tests() -> None:
    edges = edges_of_the_table()
    assert edges == [chr(ord("a") + number) for number in range(len(edges))]
    diagram = next(b.text for b in blocks_of(ROOT / "docs/architecture.md") if "IN FLIGHT" in b.text)
    assert set(re.findall(r"(?<![A-Za-z])([a-z]) (?=[a-z]{3})", diagram)) == set(edges)
    code = "\n".join(path.read_text() for path in WORKER.rglob("*.py"))
    said = re.findall(r"\b[Ee]dges? ((?:[a-z]\b(?: \([a-z ,]+\))?(?:, | and | or edge )?)+)", code)
    assert {letter for text in said for letter in re.findall(r"\b[a-z]\b", text)} == set(edges)
    tests = (ROOT / "tests/integration/worker/test_states.py").read_text()
    assert set(re.findall(r"def test_edge_([a-z])_", tests)) == set(edges)


def test_modules_and_names_of_the_architecture_exist() -> None:
    for name in re.findall(r"`((?:\w+/)*\w+\.py)`", ARCHITECTURE):
        places = (WORKER / name, ROOT / "protocol/requeue_protocol" / name, ROOT / name)
        assert any(place.exists() for place in places), name
    modules = [
        importlib.import_module("requeue_worker." + ".".join(path.relative_to(WORKER).with_suffix("").parts))
        for path in WORKER.rglob("*.py")
        if path.stem not in ("__init__", "__main__")
    ]
    for said in re.findall(r"`([A-Z]\w+)\.(\w+)`", ARCHITECTURE):
        owners = [getattr(module, said[0]) for module in modules if hasattr(module, said[0])]
        assert any(has_attribute(owner, said[1]) for owner in owners), said


# -- porting -----------------------------------------------------------------------------------------------------

PORTING = (ROOT / "docs/porting.md").read_text()

# Exported names of github.com/nickpoorman/nats-requeue at c0583b9: requeue.go, retry.go, protocol/, and the options of
# internal/republisher, internal/reaper and internal/statspub that `RepublisherOptions` and `ReaperOptions` take.
ORIGINAL = frozenset(
    """
Connect NewConn Conn Conn.Close Conn.HasBeenClosed Conn.NATSDisconnectErrHandler Conn.NATSErrorHandler
Conn.NATSReconnectHandler Conn.NATSClosedHandler Option Options Options.Connect GetDefaultOptions ConnectContext DataDir
BadgerWriteMsgErr NATSConnectionError NATSOptions NATSServers NATSSubject NATSQueueName RepublisherOptions ReaperOptions
RetryRequest DefaultNatsServers DefaultNatsClientName DefaultNatsRetryOnFailure DefaultNatsSubject DefaultNatsQueueName
DefaultNumConcurrentBatchTransactions
RequeueMessage RequeueMessage.Retries RequeueMessage.TTL RequeueMessage.Delay RequeueMessage.BackoffStrategy
RequeueMessage.QueueName RequeueMessage.OriginalSubject RequeueMessage.OriginalPayload RequeueMessage.Bytes
RequeueMessage.MarshalBinary RequeueMessage.NewReader RequeueMessage.UnmarshalBinary DefaultRequeueMessage
RequeueMessageFromNATS GetQueueName DefaultQueueName BackoffStrategy BackoffStrategy_Undefined
BackoffStrategy_Exponential BackoffStrategy_Fixed InstanceStatsMessage InstanceStatsMessage.InstanceId
InstanceStatsMessage.Queues InstanceStatsMessage.Bytes InstanceStatsMessage.MarshalBinary
InstanceStatsMessage.UnmarshalBinary DefaultInstanceStatsMessage InstanceStatsMessageFromNATS QueueStatsMessage
QueueStatsMessage.QueueName QueueStatsMessage.Enqueued QueueStatsMessage.InFlight QueueStatsMessage.Bytes
QueueStatsMessage.MarshalBinary QueueStatsMessage.UnmarshalBinary
RepublishInterval DefaultRepublisherInterval AckTimeout DefaultACKTimeout CheckpointCorrectionInterval
DefaultCheckpointCorrectionInterval MaxInFlight DefaultMaxInFlight ReapInterval DefaultReapInterval ReapedCallbacks
ReapedCallbackFunc StatsPublishInterval DefaultStatsPublisherInterval StatsSubject
""".split()  # noqa: SIM905 - a word a name reads better than a hundred quoted lines
)


def rows_of_porting() -> list[tuple[str, str]]:
    """The original's name and ours."""
    return re.findall(r"^\| `([\w.]+)` \|[^|]*\| `([\w.]+)` \|", PORTING, re.MULTILINE)


def test_every_exported_name_of_the_original_stands_in_the_porting_table() -> None:
    assert sorted(original for original, _ in rows_of_porting()) == sorted(ORIGINAL)


@pytest.mark.parametrize("ours", sorted({ours for _, ours in rows_of_porting()}))
def test_our_name_in_the_porting_table_exists(ours: str) -> None:
    parts = ours.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for name in parts[length:]:
            assert has_attribute(found, name), f"{found} has no {name}"
            found = getattr(found, name, None)
        return
    pytest.fail(f"{ours} cannot be imported")


def has_attribute(owner: object, name: str) -> bool:
    """Whether it has the attribute, as a field without a default too, or one that its `__init__` sets."""
    if hasattr(owner, name) or name in getattr(owner, "model_fields", {}):
        return True
    if name in getattr(owner, "__dataclass_fields__", {}) or name in getattr(owner, "__slots__", ()):
        return True
    return inspect.isclass(owner) and f"self.{name} = " in inspect.getsource(owner)


def test_defaults_that_are_said_to_be_kept_are_kept() -> None:
    def default(model: type[object], field: str) -> object:
        return model.model_fields[field].default  # type: ignore[attr-defined]

    assert default(NatsSettings, "servers") == ("nats://127.0.0.1:4222",)
    assert default(NatsSettings, "name") == "requeue-nats"
    assert default(Settings, "subject") == "requeue.>"
    assert default(Settings, "queue_group") == "requeue-workers"
    assert default(Settings, "stats_interval_ns") == 5_000_000_000
    assert default(QueuePolicy, "ack_timeout_ns") == 15_000_000_000
    assert default(QueuePolicy, "max_in_flight") == 4096
