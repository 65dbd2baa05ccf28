"""The page in a real browser, and the server behind it."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from common.ask import Answerer
from common.files import repository_root
from common.web import Runs
from common.web.handlers import AUTOMATIC, NO_RUN
from tests.web.browsing import BROWSERS, WAIT, find_browser, open_browser
from tests.web.conftest import LIMITS, WRONG
from tests.web.test_functions import QUESTION, expected

pytestmark = pytest.mark.web


@dataclass
class Server:
    """`common.web` in a process of its own, which may write to `temporary` alone."""

    process: subprocess.Popen[str]
    url: str
    temporary: Path
    log: Path
    home: Path
    starting: int  # lines of the log that are about the start

    def folders(self) -> list[Path]:
        return list(self.temporary.glob("adaptive-finetuning-web-*"))

    def uploads(self) -> list[Path]:
        return [path for path in self.temporary.rglob("*") if path.is_file()]

    def seen(self, kind: str) -> set[str]:
        """What was written or called since the start."""
        lines = self.log.read_text(encoding="utf-8").splitlines()[self.starting :]
        return {line.partition(" ")[2] for line in lines if line.startswith(kind)}


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """Starts servers; all are ended at the end."""
    pytest.importorskip("gradio", reason="gradio is not installed: pip install -e '.[web]'")
    started = []

    def start(*flags: object) -> Server:
        home = tmp_path_factory.mktemp("server")
        for name in ("temporary", "home", "fonts"):
            (home / name).mkdir()
        shutil.copytree(font_cache(), home / "fonts", dirs_exist_ok=True)
        environment = os.environ | {
            "TMPDIR": str(home / "temporary"),
            "HOME": str(home / "home"),
            "MPLCONFIGDIR": str(home / "fonts"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": os.pathsep.join([str(repository_root()), *filter(None, sys.path)]),
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.web.watched", str(home / "log"), "--port", "0",
             *map(str, flags)],
            cwd=home / "home", env=environment, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        assert process.stdout is not None
        line = next((line for line in process.stdout if line.startswith("page ")), "")
        assert line, "the server has ended"
        log = home / "log"
        done = len(log.read_text(encoding="utf-8").splitlines())
        return Server(process, line.split()[1], home / "temporary", log, home, done)

    yield start
    for process in started:
        process.terminate()
        process.wait(timeout=60)


def font_cache() -> str:
    import matplotlib

    return matplotlib.get_cachedir()


@pytest.fixture(scope="module")
def server(start: Callable[..., Server], run: Path, other: Path, data_root: Path) -> Server:
    limits = ["--max-megabytes", LIMITS.megabytes, "--max-megapixels", LIMITS.megapixels]
    return start("--run", run, "--run", other, "--data", data_root, *limits)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    program = find_browser()
    if program is None:
        pytest.skip(f"no browser ({', '.join(BROWSERS)}): apt-get install chromium")
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with open_browser(program) as browser:
        yield browser


@dataclass
class Visit:
    """A page that was opened, and what the browser said of it."""

    page: Any
    requests: list[str]
    messages: list[str]

    def upload(self, file: Path) -> None:
        self.page.set_input_files("#picture input[type=file]", str(file))

    def uploaded(self, file: Path) -> None:
        self.upload(file)
        self.page.wait_for_selector("#picture img", timeout=WAIT)

    def ask(self, question: str, side: str = "left") -> str:
        """Ask, and return the text of the reply."""
        self.page.fill("#question :is(input, textarea)", question)
        self.page.click("#ask")
        self.page.wait_for_selector(f"#{side} :is(.reply, .wrong)", timeout=WAIT)
        return str(self.page.inner_text(f"#{side}"))

    def answers(self, side: str = "left") -> list[tuple[str, float]]:
        texts = self.page.locator(f"#{side} .answers th").all_inner_texts()
        numbers = self.page.locator(f"#{side} .answers .number").all_inner_texts()
        return [(text, float(number)) for text, number in zip(texts, numbers, strict=True)]

    def choose(self, which: str, place: int) -> None:
        """Choose a run by its place in the list."""
        self.page.click(f"#{which} input")
        self.page.locator("ul[role=listbox] li").nth(place).click()


@pytest.fixture
def visit(server: Server, browser: Any) -> Iterator[Callable[[int], Visit]]:
    """Opens the page in a window that is so many pixels wide."""
    pages = []

    def open_page(width: int = 1280) -> Visit:
        page = browser.new_page(viewport={"width": width, "height": 900})
        visit = Visit(page, [], [])
        page.on("request", lambda request: visit.requests.append(request.url))
        page.on("console", lambda message: visit.messages.append(message.text))
        page.on("pageerror", lambda error: visit.messages.append(str(error)))
        pages.append(page)
        page.goto(server.url)
        page.wait_for_selector("#ask", timeout=WAIT)
        return visit

    yield open_page
    for page in pages:
        page.close()


def test_an_uploaded_picture_is_asked_about(visit, pictures, answerer: Answerer):
    opened = visit()
    opened.choose("second", 0)
    opened.uploaded(pictures / "shape.png")
    text = opened.ask(QUESTION)
    image = answerer.look(pictures / "shape.png")
    assert opened.answers() == expected(answerer.ask(image, QUESTION))
    for heading in ("What the model sees", "What it attends to", "What was decided"):
        assert heading in text
    assert opened.page.locator("#left img").count() == 4
    assert opened.page.evaluate(
        "[...document.querySelectorAll('#left img')].every(i => i.naturalWidth)"
    )
    assert opened.page.locator("#right").count() == 0 or not opened.page.is_visible("#right")


def test_an_example_is_asked_by_two_runs_side_by_side(visit):
    opened = visit()
    opened.page.locator("#examples button").nth(1).click()
    opened.page.wait_for_selector("#picture img", timeout=WAIT)
    question = opened.page.input_value("#question :is(input, textarea)")
    assert question.endswith("?")
    opened.ask(question, "right")
    left, right = opened.answers("left"), opened.answers("right")
    assert len(left) == len(right) == 5 and left != right
    boxes = [opened.page.locator(f"#{side}").bounding_box() for side in ("left", "right")]
    assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"] and boxes[0]["y"] == boxes[1]["y"]


def test_a_layer_s_attention_can_be_chosen(visit, pictures):
    opened = visit()
    opened.choose("second", 0)
    opened.uploaded(pictures / "shape.png")
    opened.page.get_by_text("Attention", exact=True).click()
    opened.page.wait_for_function("document.querySelector('#layer-first input')")
    opened.choose("layer-first", 1)
    assert "attention of lang.1, mean of all heads" in opened.ask(QUESTION)


@pytest.mark.parametrize(("name", "message"), WRONG.items())
def test_a_wrong_file_is_said_at_once_and_when_it_is_asked_about(visit, pictures, name, message):
    opened = visit()
    opened.upload(pictures / name)
    opened.page.wait_for_selector("#looked .wrong", timeout=WAIT)
    assert message in opened.page.inner_text("#looked")
    assert message in opened.ask(QUESTION)
    opened.page.click(
        "#picture button[aria-label='Clear'], #picture button[aria-label='Remove Image']"
    )
    opened.uploaded(pictures / "shape.png")
    opened.page.wait_for_selector("#looked .wrong", state="detached", timeout=WAIT)
    opened.page.click("#ask")
    opened.page.wait_for_selector("#left .reply", timeout=WAIT)


def test_too_large_a_file_is_refused(visit, pictures):
    opened = visit()
    opened.upload(pictures / "heavy.png")
    opened.page.get_by_text("exceed the maximum allowed size").first.wait_for(timeout=WAIT)
    assert "no picture: upload one" in opened.ask(QUESTION)


def test_a_question_is_missing(visit, pictures):
    opened = visit()
    opened.uploaded(pictures / "shape.png")
    assert "no question: write one" in opened.ask("")


def test_the_page_asks_nothing_of_other_machines(visit, server, pictures):
    opened = visit()
    opened.uploaded(pictures / "shape.png")
    opened.ask(QUESTION)
    elsewhere = [u for u in opened.requests if not u.startswith((server.url, "data:", "blob:"))]
    assert elsewhere == [] and len(opened.requests) > 10
    refused = [text for text in opened.messages if "Refused" in text or "violates" in text]
    assert refused == []


@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_is_wider_than_the_window(visit, pictures, width):
    opened = visit(width)
    opened.uploaded(pictures / "shape.png")
    opened.ask(QUESTION)
    wide, seen = opened.page.evaluate(
        "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert wide == seen == width


def post(url: str, content: bytes, kind: str) -> tuple[int, str]:
    request = urllib.request.Request(url, content, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def upload(server: Server, content: bytes) -> tuple[int, str]:
    body = io.BytesIO()
    head = 'Content-Disposition: form-data; name="files"; filename="a.png"'
    body.write(f"--x\r\n{head}\r\nContent-Type: image/png\r\n\r\n".encode())
    body.write(content + b"\r\n--x--\r\n")
    kind = "multipart/form-data; boundary=x"
    return post(f"{server.url}gradio_api/upload", body.getvalue(), kind)


def test_the_server_itself_refuses_a_large_file_and_keeps_nothing_of_it(server):
    before = set(server.uploads())
    status, _ = upload(server, bytes(LIMITS.bytes + 1000))
    assert status == 413 and set(server.uploads()) == before
    assert upload(server, b"small")[0] == 200


def joined(server: Server, number: int, data: list[object]) -> str:
    """What the queue answers to an event, as text."""
    session = f"session{number}"
    event = {"data": data, "fn_index": number, "session_hash": session}
    status, said = post(
        f"{server.url}gradio_api/queue/join", json.dumps(event).encode(), "application/json"
    )
    assert status == 200, said
    with urllib.request.urlopen(
        f"{server.url}gradio_api/queue/data?session_hash={session}"
    ) as stream:
        lines = []
        for line in stream:
            lines.append(line.decode())
            if "process_completed" in lines[-1]:
                break
    return "".join(lines)


def event_of(server: Server, name: str, what: str) -> int:
    """The number of what happens when something happens to a component."""
    with urllib.request.urlopen(f"{server.url}config") as answer:
        config = json.load(answer)
    component = next(c["id"] for c in config["components"] if c["props"].get("elem_id") == name)
    return next(d["id"] for d in config["dependencies"] if [component, what] in d["targets"])


def file_data(path: str) -> dict[str, Any]:
    return {"path": path, "orig_name": "x.png", "meta": {"_type": "gradio.FileData"}}


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("http://127.0.0.1:9/x.png", "pictures are not fetched from other machines"),
        ("https://example.com/x.png", "pictures are not fetched from other machines"),
        ("/etc/hostname", "Cannot move /etc/hostname"),
    ],
)
def test_a_picture_is_not_fetched_from_elsewhere(server, path, message):
    said = joined(server, event_of(server, "picture", "change"), [file_data(path)])
    assert message in said and '"success":false' in said.replace(": ", ":")


def test_a_picture_that_is_not_kept_any_longer_is_said(server, pictures):
    status, said = upload(server, (pictures / "shape.png").read_bytes() + b"old")
    (path,) = json.loads(said)
    Path(path).unlink()
    assert status == 200
    told = joined(server, event_of(server, "picture", "change"), [file_data(path)])
    assert "this picture is not kept any longer: upload it again" in told


def test_the_page_tells_nothing_of_itself_to_others(server):
    with urllib.request.urlopen(f"{server.url}config") as answer:
        config = json.load(answer)
        assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert config["analytics_enabled"] is False and not config.get("run_history")
    assert all(d["api_visibility"] == "private" for d in config["dependencies"])


def test_nothing_is_written_elsewhere_called_elsewhere_or_kept(start, run, data_root, pictures):
    """From its start to its end, with an upload between."""
    server = start("--run", run, "--data", data_root)
    content = (pictures / "shape.png").read_bytes()
    status, said = upload(server, content)
    assert status == 200
    (folder,) = server.folders()
    assert any(path.read_bytes() == content for path in server.uploads())
    (label,) = Runs([run]).labels
    given = [file_data(json.loads(said)[0]), QUESTION, label, NO_RUN, AUTOMATIC, AUTOMATIC, 0, ""]
    assert "class='answers'" in joined(server, event_of(server, "ask", "click"), given)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(timeout=60) == 0
    assert (
        server.process.stdout is not None and "uploads are deleted" in server.process.stdout.read()
    )
    assert server.folders() == [] and server.uploads() == []
    elsewhere = {
        path for path in server.seen("write")
        if not path.startswith((str(folder), "/dev/", "/proc/"))
    }  # fmt: skip
    assert elsewhere == set()
    assert list((server.home / "home").rglob("*")) == []
    called = {address for address in server.seen("connect") if "127.0.0.1" not in address}
    assert called == set()
