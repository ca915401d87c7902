"""The Dagster UI in headless Chromium, under the real webserver, daemon and run launcher.

A finished round is looked at as a visitor would; a live one is played by the daemon's sensor without a click.
"""

import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from git import Repo
from playwright.sync_api import Locator, Page, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
CHROMIUM_ARGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
SMALL_ROUND = ["--miners", "3", "--prompts", "4", "--seed", "7"]
GROUPS = ["intake", "outputs", "duels", "verification", "finale"]
MOST_SECONDS = {"start": 400, "run": 400, "end": 120}

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt install chromium")


@dataclass(frozen=True)
class Ui:
    """A running `gen404 ui`."""

    url: str
    workdir: Path

    def ask(self, query: str, **variables: object) -> Any:
        answer = httpx.post(
            f"{self.url}/graphql", json={"query": query, "variables": variables}, timeout=60, trust_env=False
        ).json()
        assert "errors" not in answer, answer["errors"]
        return answer["data"]

    def runs(self) -> list[dict[str, Any]]:
        """The newest first."""
        query = "{ runsOrError { ... on Runs { results { id jobName status tags { key value } } } } }"
        return list(self.ask(query)["runsOrError"]["results"])

    def log(self) -> list[str]:
        """Subjects of the state repository's commits."""
        with Repo(self.workdir / "remote.git") as repository:
            return [str(commit.summary) for commit in repository.iter_commits("main")]

    def head(self) -> str:
        with Repo(self.workdir / "remote.git") as repository:
            return repository.commit("main").hexsha


@contextmanager
def running_ui(root: Path, workdir: Path, *options: str) -> Iterator[Ui]:
    """`gen404 ui`, ended with one SIGINT to it alone: exit code 0, and nothing of it is left."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).with_name("gen404")), "ui", "--workdir", str(workdir), "--port", str(port)]
    with (workdir.parent / f"{workdir.name}-ui.log").open("wb") as log:
        process = subprocess.Popen([*command, *options], cwd=root, stdout=log, stderr=log, start_new_session=True)
    ui = Ui(f"http://127.0.0.1:{port}", workdir)
    try:
        wait_until(lambda: process.poll() is None and _answers(ui), MOST_SECONDS["start"], "the UI answers")
        yield ui
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) > 4
        process.send_signal(signal.SIGINT)
        assert process.wait(MOST_SECONDS["end"]) == 0
        _, alive = psutil.wait_procs(family, timeout=60)
        assert not [survivor.cmdline() for survivor in alive]
        assert not [
            p.pid for p in psutil.process_iter(["cmdline"]) if str(workdir) in " ".join(p.info["cmdline"] or ())
        ]
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(MOST_SECONDS["end"])


def _answers(ui: Ui) -> bool:
    try:
        return bool(ui.ask("{ repositoriesOrError { ... on RepositoryConnection { nodes { name } } } }")
                    ["repositoriesOrError"].get("nodes"))  # fmt: skip
    except (httpx.HTTPError, ValueError):
        return False


def wait_until(done: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.5)


@pytest.fixture(scope="module")
def finished(repository_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ui]:
    """The UI on a round that `gen404 simulate` played."""
    workdir = tmp_path_factory.mktemp("ui") / "played"
    gen404 = str(Path(sys.executable).with_name("gen404"))
    played = subprocess.run(
        [gen404, "simulate", *SMALL_ROUND, "--workdir", str(workdir)], cwd=repository_root, capture_output=True
    )
    assert played.returncode == 0, played.stderr[-2000:]
    with running_ui(repository_root, workdir) as ui:
        yield ui


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGS)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Page]:
    opened = browser.new_page(viewport={"width": 1700, "height": 1300})
    opened.set_default_timeout(30_000)
    yield opened
    opened.close()


def picture_behind(page: Page, label: str) -> tuple[int, int]:
    """Size of the decoded picture of a metadata entry."""
    page.get_by_role("row").filter(has=page.get_by_text(label, exact=True)).get_by_text("[Show Markdown]").click()
    picture = page.get_by_role("dialog").locator("img")
    size = picture.evaluate(
        "async picture => { await picture.decode(); return [picture.naturalWidth, picture.naturalHeight] }"
    )
    page.get_by_role("button", name="Close").click()
    return size[0], size[1]


def cells(table: Locator) -> list[list[str]]:
    rows: list[list[str]] = table.locator("tr").evaluate_all(
        "rows => rows.map(row => [...row.children].map(cell => cell.innerText.trim()))"
    )
    return rows


@needs_chromium
def test_groups_stand_in_the_order_of_the_round(finished: Ui, page: Page) -> None:
    page.goto(f"{finished.url}/asset-groups")
    page.locator("foreignObject").filter(has_text="finale").first.wait_for()
    boxes = [page.locator("foreignObject").filter(has_text=name).first.bounding_box() for name in GROUPS]
    left = [box["x"] for box in boxes if box]
    assert len(left) == len(GROUPS)
    assert left == sorted(left)


@needs_chromium
def test_previews_of_a_miner_are_a_gallery(finished: Ui, page: Page) -> None:
    page.goto(f"{finished.url}/assets/renders?view=partitions&partition={miners(finished)[0]}")
    width, height = picture_behind(page, "previews_gallery")
    assert (width, height) == (4 * 192, 192 + 16)


@needs_chromium
def test_match_matrix_is_a_heat_map_a_table_and_words(finished: Ui, page: Page) -> None:
    page.goto(f"{finished.url}/assets/match_matrix?view=partitions&partition=0")
    timeline = page.get_by_role("row").filter(has=page.get_by_text("timeline", exact=True))
    timeline.get_by_text("took the lead from leader by +").wait_for()
    assert timeline.inner_text().rstrip().endswith("\nsettled")
    head, *rows = cells(page.locator("table table").first)
    assert head[:3] == ["left", "right", "margin"]
    assert {"interval", "close", "won"} <= set(head)
    assert [row[:2] for row in rows][:3] == [["leader", key.partition("|")[2][:10]] for key in miners(finished)]
    width, height = picture_behind(page, "heat_map")
    assert min(width, height) > 3 * 64


@needs_chromium
def test_checks_are_green_and_everything_is_materialized(finished: Ui, page: Page) -> None:
    page.goto(f"{finished.url}/assets/match_matrix?view=checks")
    page.get_by_text("timeline_settled").first.wait_for()
    page.get_by_text("Succeeded", exact=True).nth(1).wait_for()
    nodes = finished.ask("""{ assetNodes { assetKey { path } groupName partitionStats { numFailed }
        materialized: latestMaterializationByPartition(partitions: ["0"]) { timestamp }
        assetChecksOrError { ... on AssetChecks { checks { name executionForLatestMaterialization { status } } } } } }""")[
        "assetNodes"
    ]
    of_rounds = [node for node in nodes if node["groupName"] in GROUPS]
    checks = [check for node in of_rounds for check in node["assetChecksOrError"].get("checks", ())]
    assert len(checks) > 8
    assert {check["name"] for check in checks if not green(check)} == set()
    assert not [node for node in of_rounds if node["partitionStats"]["numFailed"]]
    missing = {node["assetKey"]["path"][0] for node in of_rounds if node["materialized"] == [None]}
    assert missing == {"downloads", "renders"}  # theirs are the miners' partitions
    assert len(miners(finished)) == 3


def green(check: dict[str, Any]) -> bool:
    return bool(check["executionForLatestMaterialization"]) and (
        check["executionForLatestMaterialization"]["status"] == "SUCCEEDED"
    )


def miners(ui: Ui) -> list[str]:
    """Materialized partitions of `renders`, in order of submission."""
    answer = ui.ask("""{ assetNodeOrError(assetKey: {path: ["renders"]}) { ... on AssetNode { assetPartitionStatuses {
        ... on DefaultPartitionStatuses { materializedPartitions } } partitionKeys } } }""")["assetNodeOrError"]
    done = set(answer["assetPartitionStatuses"]["materializedPartitions"])
    return [key for key in answer["partitionKeys"] if key in done]


@needs_chromium
def test_one_miner_of_one_round_is_materialized_again_alone(finished: Ui, page: Page) -> None:
    key = miners(finished)[1]
    hotkey = key.partition("|")[2]
    store = finished.workdir / "data" / "store" / "rounds"
    before = contents(store)
    lost = next(path for path in before if path.parts[-3:-1] == (hotkey, "submitted") and path.suffix == ".png")
    lost.unlink()
    head, known = finished.head(), {run["id"] for run in finished.runs()}

    page.goto(f"{finished.url}/assets/renders?view=partitions")
    page.get_by_role("button", name="Materialize").first.click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_text("Select a partition or create one").click()
    page.get_by_role("menuitem").filter(has_text=key).click()
    page.keyboard.press("Escape")
    dialog.get_by_role("button", name="Launch").click()

    def new_runs() -> list[dict[str, Any]]:
        return [run for run in finished.runs() if run["id"] not in known]

    wait_until(
        lambda: bool(new_runs()) and all(run["status"] in ("SUCCESS", "FAILURE") for run in new_runs()),
        MOST_SECONDS["run"],
        "the run ends",
    )
    assert [run["status"] for run in new_runs()] == ["SUCCESS"]
    tags = {tag["key"]: tag["value"] for tag in new_runs()[0]["tags"]}
    asked = tags.get("dagster/partition") or tags["dagster/asset_partition_range_start"]
    assert asked == tags.get("dagster/asset_partition_range_end", asked) == key
    assert contents(store) == before
    assert finished.head() == head


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def play_live(root: Path, workdir: Path, subject: str, seconds: float) -> list[str]:
    """Jobs that the daemon ran, without a click, until a commit with this subject."""
    with running_ui(root, workdir, *SMALL_ROUND, "--blocks-per-second", "100") as ui:
        wait_until(lambda: any(line.startswith(subject) for line in ui.log()), seconds, subject)
        runs = ui.runs()
        assert [run for run in runs if run["status"] in ("FAILURE", "CANCELED")] == []
        return [run["jobName"] for run in reversed(runs)]


def test_the_daemon_opens_a_live_round_without_a_click(repository_root: Path, tmp_path: Path) -> None:
    jobs = play_live(repository_root, tmp_path / "live", "Publish seed", 400)
    assert jobs[0] == "open_round"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_daemon_plays_a_live_round_to_the_next_schedule(repository_root: Path, tmp_path: Path) -> None:
    jobs = play_live(repository_root, tmp_path / "live", "Schedule round 1", 300)
    assert set(jobs) >= {"open_round", "advance", "baseline", "download", "judge", "verify", "crown", "finalize"}
