"""What the page does, without a page: replies, limits, what is wrong, where runs are found."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import threading
import time
from html.parser import HTMLParser
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from PIL import Image

import common.ask.answerer
import common.web.handlers
import common.web.runs
from common.ask import Answered, Answerer, PairDecisions
from common.ask.unusual import unusual_decisions
from common.detector.opening import detector_origin
from common.errors import CheckpointError, ConfigError, DataError
from common.runs import open_run
from common.web import Limits, Runs, find_runs, main, read_upload, run_label
from common.web.address import free_port
from common.web.command import copied_examples, stopped_by_signals
from common.web.handlers import AUTOMATIC, NO_RUN, Handlers
from common.web.runs import IN_MEMORY, PICTURES, file_digest
from tests.common.own_detector import OwnDetector, with_features
from tests.conftest import EARLIER
from tests.web.conftest import LIMITS, WRONG

QUESTION = "What color is the shape?"


@pytest.fixture
def handlers(runs: Runs) -> Handlers:
    return Handlers(runs, LIMITS)


def sent(path: Path, name: str | None = None) -> dict[str, object]:
    """A file as gradio describes what a browser has sent."""
    return {"path": str(path), "orig_name": name or path.name, "meta": {"_type": "gradio.FileData"}}


def asked(handlers: Handlers, picture: object, question: object = QUESTION, **other: object):
    given = {"first": handlers.runs.labels[0], "second": NO_RUN} | other
    layers = given.pop("layer", AUTOMATIC), AUTOMATIC
    more = given.pop("head", 0), given.pop("word", "")
    return handlers.ask(picture, question, given["first"], given["second"], *layers, *more)


class Page(HTMLParser):
    """The tags of a reply, and the rows of its answers."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(content)
        rows = re.findall(r"<th scope='row'>(.*?)</th>.*?<td class='number'>(.*?)</td>", content)
        self.answers = [(text, float(number)) for text, number in rows]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def expected(answered: Answered) -> list[tuple[str, float]]:
    return [(each.text, round(each.probability, 3)) for each in answered.answers]


def test_the_reply_is_what_the_run_answers(handlers, answerer, pictures):
    picture = pictures / "shape.png"
    reply, nothing = asked(handlers, sent(picture))
    page = Page(reply)
    found = answerer.ask(answerer.look(picture), QUESTION)
    assert nothing == ""
    assert page.answers == expected(found) and len(page.answers) == 5
    boxes = len(answerer.look(picture).regions.boxes)
    assert len(page.of("li")) == boxes and f"{boxes} regions, by " in reply
    figures = page.of("img")
    assert [bool(each["alt"]) for each in figures] == [True] * 4  # boxes, attention, pair, average
    assert all(str(each["src"]).startswith("data:image/png;base64,") for each in figures)
    live = sum(found.decisions.live)
    assert f"of {live} parts finetuned." in reply and "validation questions" in reply


def test_two_runs_reply_side_by_side_and_one_without_result_says_so(handlers, pictures):
    first, second = handlers.runs.labels
    left, right = asked(handlers, sent(pictures / "shape.png"), second=second)
    assert all(
        name.partition(" (/")[0] in reply and str(handlers.runs.folders[name]) in reply
        for name, reply in ((first, left), (second, right))
    )
    assert Page(left).answers != Page(right).answers
    assert "average decisions are not known" in right and "average decisions" not in left
    assert len(Page(right).of("img")) == 3


def test_an_example_is_asked_with_the_features_of_the_data_set(runs, answerer, tmp_path):
    examples, notes = copied_examples(runs, 4, tmp_path / "examples")
    assert len({each.image_id for each in examples}) == 4 and notes == []
    chosen = examples[2]
    reply, _ = asked(Handlers(runs, LIMITS), sent(chosen.file), chosen.question)
    record = answerer.find(None, chosen.image_id)
    assert Page(reply).answers == expected(answerer.ask(record, chosen.question))
    known = runs.look(runs.labels[0], Image.open(chosen.file), "name", file_digest(chosen.file))
    assert known.regions.image_id == chosen.image_id and known.name == "name"


def test_an_image_of_the_same_name_in_another_data_set_is_not_taken_for_it(
    runs, pictures, tmp_path
):
    label, file = runs.labels[0], tmp_path / "another.png"
    Image.open(pictures / "shape.png").rotate(90).save(file)
    digest = file_digest(file)
    runs._ids[digest] = runs.examples(label, 1)[0].image_id  # as the first run's data set calls it
    found = runs.look(label, Image.open(file).convert("RGB"), "name", digest)
    assert found.picture.size == (96, 96) and found.file is None


def test_a_run_that_reads_pixels_is_given_them_when_a_layer_is_looked_for(
    runs, pictures, monkeypatch
):
    """Where attention is looked at is found by a pass of its own."""
    passed, real = [], common.ask.answerer.make_batch

    def make(regions, question, picture=None):
        passed.append(picture)
        return real(regions, question, picture)

    monkeypatch.setattr(common.ask.answerer, "make_batch", make)
    label, file = runs.labels[0], pictures / "shape.png"
    image = runs.look(label, Image.open(file).convert("RGB"), "name", "another digest")
    runs.ask(label, image, QUESTION, "", "")
    assert passed == [image.picture] and image.picture is not None


def test_a_data_set_that_is_not_there_gives_no_examples_and_a_note(runs, other, tmp_path):
    alone = Runs([other])
    examples, (note,) = copied_examples(alone, 4, tmp_path / "examples")
    assert examples == [] and note.startswith("No example pictures: ")
    assert copied_examples(alone, 0, tmp_path) == ([], [])


def test_a_run_that_cannot_look_at_a_picture_says_why_beside_the_reply_of_another(run, pictures):
    handlers = Handlers(Runs([run, EARLIER / "vilbert"]), LIMITS)
    left, right = asked(handlers, sent(pictures / "shape.png"), second=handlers.runs.labels[1])
    assert Page(left).answers
    assert "role='alert'" in right and "Name that detector with --detector FOLDER" in right


def test_a_found_run_that_cannot_be_opened_is_said_where_it_is_asked(run, pictures, tmp_path):
    shutil.copytree(run, tmp_path / "broken")
    (tmp_path / "broken" / "vocab.txt").unlink()
    runs = Runs([tmp_path / "broken", run])
    examples, (note,) = copied_examples(runs, 4, tmp_path / "examples")
    assert examples == [] and "vocab.txt" in note
    handlers = Handlers(runs, LIMITS)
    assert handlers.layers(runs.labels[0]) == []
    left, right = asked(handlers, sent(pictures / "shape.png"), second=runs.labels[1])
    assert "vocab.txt" in left and "role='alert'" in left and Page(right).answers


def test_a_detector_names_the_regions_and_looks_once_at_a_picture(
    run, pictures, tmp_path, monkeypatch
):
    own = OwnDetector(2048)
    folder = with_features(run, tmp_path / "own", **detector_origin(own))
    opened = Answerer(open_run(folder), own)
    monkeypatch.setattr(Answerer, "open", lambda folder, options: opened)
    handlers = Handlers(Runs([folder]), LIMITS)
    first, _ = asked(handlers, sent(pictures / "shape.png"))
    second, _ = asked(handlers, sent(pictures / "shape.png", "renamed.png"), "Is it a circle?")
    assert own.looks == 1 and "3 regions, by own" in first
    for reply in (first, second):
        assert re.findall(r"\d  (\w+), attribute", reply) == ["cat", "dog", "mat"]
    asked(handlers, sent(pictures / "whole.jpg"))
    assert own.looks == 2


def test_the_attention_that_is_chosen_is_shown(handlers, pictures):
    picture, layers = sent(pictures / "shape.png"), handlers.layers(handlers.runs.labels[0])
    assert "attention of cross.2, mean of all heads: text → region" in asked(handlers, picture)[0]
    assert layers[0] == "lang.1" and "cross.1" in layers and handlers.layers(NO_RUN) == []
    reply, _ = asked(handlers, picture, layer="lang.1", head=2)
    assert "attention of lang.1, head 2: text → text" in reply
    for wrong, message in (
        ({"layer": "cross.9"}, "no such layer"),
        ({"layer": "cross.1", "head": 99}, "it has the heads 1 to"),
        ({"head": 1}, "choose its layer as well"),
    ):
        assert message in asked(handlers, picture, **wrong)[0]


@pytest.mark.parametrize(("name", "message"), WRONG.items())
def test_a_wrong_picture_is_said(handlers, pictures, name, message):
    for reply in (handlers.check(sent(pictures / name)), asked(handlers, sent(pictures / name))[0]):
        assert reply.startswith("<div class='wrong' role='alert'>") and message in reply
        assert str(pictures) not in reply, "a path of the server"


def test_a_good_picture_or_none_is_not_complained_of(handlers, pictures):
    assert handlers.check(sent(pictures / "shape.png")) == handlers.check(None) == ""


def test_too_large_a_file_is_not_read(pictures, monkeypatch):
    monkeypatch.setattr(Path, "open", None)
    monkeypatch.setattr("builtins.open", None)
    with pytest.raises(DataError, match=r"heavy.png: 0.3 MiB; at most 0.25 MiB are taken"):
        read_upload(pictures / "heavy.png", "heavy.png", LIMITS)


def test_pixels_are_counted_before_they_are_decoded(pictures, monkeypatch):
    monkeypatch.setattr("common.web.uploads.decode_picture", None)
    with pytest.raises(DataError, match=r"1001 x 1000 pixels"):
        read_upload(pictures / "wide.png", "wide.png", LIMITS)


def test_an_upload_is_read_as_it_is(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    picture, notes = read_upload(tmp_path / "a.png", "mine.png", Limits())
    assert notes == [] and np.array_equal(np.asarray(picture), pixels)
    Image.fromarray(pixels).save(
        tmp_path / "b.gif", save_all=True, append_images=[Image.new("RGB", (30, 20))]
    )
    assert read_upload(tmp_path / "b.gif", "mine.gif", Limits())[1] == [
        "mine.gif: the first of its 2 frames"
    ]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"picture": None}, "no picture: upload one"),
        ({"picture": {"path": "/nowhere/x.png"}}, "not kept any longer"),
        ({"picture": "text"}, "has sent no picture"),
        ({"picture": {"path": 3}}, "has sent no picture"),
        ({"question": "  "}, "no question: write one"),
        ({"question": None}, "no question: write one"),
        ({"question": 7}, "question: expected a text, got 7"),
        ({"question": "a\ud800"}, "question: expected a text"),
        ({"question": "a" * 201}, "201 characters, at most 200"),
        ({"first": "elsewhere"}, "is none of those of this page"),
        ({"first": ["x"]}, "run: expected a text"),
        ({"layer": {"a": 1}}, "layer: expected a text"),
        ({"word": 1.5}, "word: expected a text"),
    ],
)
def test_whatever_a_browser_sends_is_answered(handlers, pictures, wrong, message):
    given = {"picture": sent(pictures / "shape.png")} | wrong
    reply, _ = asked(handlers, given.pop("picture"), **given)
    assert "role='alert'" in reply and message in reply


def test_texts_of_others_are_escaped(handlers, pictures, tmp_path):
    Image.new("RGB", (40, 40), "white").save(tmp_path / "x.gif", save_all=True, append_images=[
        Image.new("RGB", (40, 40))])  # fmt: skip
    name, question = "<img src=x onerror=alert(1)>.gif", "<script>alert(2)</script> color?"
    reply, _ = asked(handlers, sent(tmp_path / "x.gif", name), question)
    page = Page(reply)
    assert page.answers and "the first of its 2 frames" in reply
    assert not page.of("script") and all("onerror" not in each for each in page.of("img"))
    (tmp_path / "y.png").write_text("none")
    assert not Page(handlers.check(sent(tmp_path / "y.png", name))).of("img")


def test_a_bug_is_said_and_the_next_question_answered(handlers, pictures, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(common.web.handlers, "reply_html", lambda reply: 1 / 0)
        reply, _ = asked(handlers, sent(pictures / "shape.png"))
        assert "role='alert'" in reply and "bug: ZeroDivisionError" in reply
    assert len(list(tmp_path.glob("adaptive-finetuning-*.log"))) == 1
    assert Page(asked(handlers, sent(pictures / "shape.png"))[0]).answers


def test_questions_are_answered_one_at_a_time(runs, pictures, monkeypatch):
    handlers, now, most = Handlers(runs, LIMITS), [0], []

    def slowly(*given: object) -> None:
        now[0] += 1
        most.append(now[0])
        time.sleep(0.02)
        now[0] -= 1
        raise ConfigError("enough")

    monkeypatch.setattr(runs, "ask", slowly)
    threads = [
        threading.Thread(target=asked, args=(handlers, sent(pictures / "shape.png")))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 4


def test_a_few_runs_and_pictures_are_kept_in_memory(tmp_path, pictures):
    for name in "abc":
        shutil.copytree(EARLIER / "lxmert", tmp_path / name)
    runs = Runs([tmp_path / name for name in "abc"], opened=True)
    first, _, third = runs.labels
    kept = runs.answerer(first)
    assert runs.answerer(first) is kept and IN_MEMORY == 2
    runs.answerer(third)
    assert runs.answerer(first) is kept, "the one that was asked last was closed"
    assert list(runs._open) == [third, first]
    picture = Image.open(pictures / "shape.png")
    looked = runs.look(first, picture, "a", "digest")
    assert runs.look(first, picture, "b", "digest", ["n"]).regions is looked.regions
    for number in range(PICTURES):
        runs.look(first, picture, "a", str(number))
    assert runs.look(first, picture, "a", "digest").regions is not looked.regions


def test_a_run_twice_or_none_is_refused(tmp_path, run):
    with pytest.raises(ConfigError, match="the same run twice"):
        Runs([run, run])
    with pytest.raises(CheckpointError, match="is no folder"):
        Runs([tmp_path / "none"])


def test_runs_are_found_where_the_backbones_write_them(tmp_path, run, monkeypatch):
    roots = [tmp_path / "snap", tmp_path / "save"]
    monkeypatch.setattr(common.web.runs, "run_roots", lambda: roots)
    with pytest.raises(ConfigError, match=r"no finished run in .*snap, .*: train one .*easy_vqa"):
        find_runs()
    shutil.copytree(EARLIER / "vlbert", roots[1] / "deep" / "er")
    shutil.copytree(run, roots[0] / "new")
    (roots[0] / "damaged").mkdir()
    (roots[0] / "damaged" / "BEST.safetensors").write_bytes(b"no")
    assert set(find_runs()) == {roots[0] / "new", roots[1] / "deep" / "er"}
    label = run_label(roots[0] / "new")
    assert label.startswith("SpotTune_Res · LXMERT (small) · vqa") and "new" in label


def test_the_roots_are_those_of_all_backbones():
    assert [root.parts[-2:] for root in common.web.runs.run_roots()] == [
        ("LXMERT", "snap"),
        ("ViLBERT", "save"),
        ("VLBERT", "output"),
    ]


def test_unusual_decisions_are_those_that_most_questions_do_not_share():
    generator = np.random.default_rng(3)
    names = [f"d{n}" for n in range(200)]
    decisions = generator.integers(0, 2, 200).tolist()
    share, live = generator.random(200).round(2).tolist(), (generator.random(200) < 0.9).tolist()
    found = PairDecisions(names, names, names, live, decisions, None, ("frozen", "tuned"), "argmax")
    unusual = unusual_decisions(found, {"names": names, "share": share})
    likely = [int(value > 0.5) for value in share]
    expected = {
        names[n] for n in range(200) if live[n] and decisions[n] != likely[n] and share[n] != 0.5
    }
    assert {each.name for each in unusual} == expected and len(expected) > 50
    assert [each.share for each in unusual] == sorted(each.share for each in unusual)
    assert all(each.word == ("frozen", "tuned")[decisions[each.place]] for each in unusual)
    with pytest.raises(DataError, match="of another run"):
        unusual_decisions(found, {"names": names[::-1], "share": share})


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--port", "70000"], "--port 70000: give a number from 0 to 65535"),
        (["--max-megabytes", "0"], "--max-megabytes 0: give a number above 0"),
        (["--max-megapixels", "nan"], "--max-megapixels nan: give a number above 0"),
        (["--examples", "-1", "--port", "0"], "--examples -1: give 0 or more"),
        (["--run", "nowhere", "--port", "0"], "run nowhere is no folder"),
    ],
)
def test_the_command_refuses_what_cannot_work(flags, message, capsys, monkeypatch):
    monkeypatch.setattr("common.web.command.check_gradio", lambda: None)
    assert main(flags) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_a_port_that_is_taken_is_said_before_a_run_is_opened(capsys, monkeypatch):
    monkeypatch.setattr("common.web.command.check_gradio", lambda: None)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["--run", "nowhere", "--port", str(port)]) == 2
    assert f"--port {port}: cannot listen there (Address already" in capsys.readouterr().err
    assert main(["--host", "192.0.2.1", "--port", "0"]) == 2
    assert "--host 192.0.2.1 --port 0: cannot listen there" in capsys.readouterr().err
    assert 1024 < free_port("127.0.0.1", 0) <= 65535


def test_a_signal_lets_the_temporary_folder_be_deleted():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), stopped_by_signals(), TemporaryDirectory() as folder:
        signal.raise_signal(signal.SIGTERM)
    assert not Path(folder).exists() and signal.getsignal(signal.SIGTERM) is before


def test_without_gradio_the_error_says_how_to_install_it(capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main([]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: gradio, which makes the page, is not installed: pip install ")
    assert error.count("\n") == 1
