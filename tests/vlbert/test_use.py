"""Finetuned runs of VL-BERT opened, asked, exported; training from images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from common import export
from common.adapt.adapting import adaptive_part
from common.ask import command as ask
from common.ask.answerer import Answerer, AnswererOptions
from common.ask.answering import ask as ask_pair
from common.ask.answering import make_batch
from common.detector.regions import FoundRegions
from common.features.store import RegionFeatures, Regions
from common.runs.opened_run import open_run
from common.training.checkpoint import load_checkpoint, save_checkpoint
from tests.common.attended import blocks_by_kind, check_places, mass
from tests.common.own_detector import OwnDetector, check_asked, check_commands
from tests.vlbert.coco_files import TRAINVAL
from tests.vlbert.runs import FOLDER, TRAIN, VAL, flags, refused, result_of, write_config
from vlbert.config import load_config
from vlbert.data import VQASource
from vlbert.finetuning import main
from vlbert.sizes import NetworkConfig
from vlbert.testing import main as predict
from vlbert.vqa_network import ResNetVLBERT

SETTINGS = {"TRAIN__LR": 2.5e-3, "TRAIN__END_EPOCH": 3, "TRAIN__FLIP_PROB": 0, "POLICY__LR": 1e-2}
OTHER_DETECTOR = AnswererOptions(any_detector=True)
MERGED = ("SpotTune_Block", "SpotTune_Res", "SpotTune", "BlockDrop")


@pytest.fixture(scope="module")
def config(coco: Path) -> Path:
    """Learning rates that let predictions and decisions differ between questions."""
    return write_config(coco, **SETTINGS)


@pytest.fixture(scope="module")
def runs(config: Path, tmp_path_factory: pytest.TempPathFactory):
    """`runs(strategy, *flags)` gives the folder of a finished run."""
    made: dict[tuple[str, ...], Path] = {}

    def make(strategy: str, *more: str) -> Path:
        key = (strategy, *more)
        if key not in made:
            out = tmp_path_factory.mktemp(strategy)
            assert main(flags(config, out, "--strategy", strategy, "--no-tensorboard", *more)) == 0
            made[key] = out / FOLDER
        return made[key]

    return make


def store(coco: Path) -> RegionFeatures:
    return RegionFeatures.open((coco / TRAINVAL).with_name(f"{Path(TRAINVAL).name}_features"))


def test_the_best_answer_is_what_testing_predicts(runs, config, coco, tmp_path):
    folder = runs("SpotTune")
    assert (
        predict(
            [
                "--cfg",
                str(config),
                "--ckpt",
                str(folder / "BEST"),
                "--gpus",
                "cpu",
                "--split",
                "val2014",
                "--result-path",
                str(tmp_path),
                "--quiet",
            ]
        )
        == 0
    )
    rows = json.loads((tmp_path / "tiny_vqa2_val2014.json").read_text())
    run, features = open_run(folder), store(coco)
    given = {}
    for number, side in enumerate(("left", "right")):
        for image in VAL:
            found = ask_pair(run, features.get(str(image)), f"what is {side}?")
            given[10 * image + number] = found.answers[0].text
            assert len(found.decisions.decisions) == 10
    assert given == {row["question_id"]: row["answer"] for row in rows}


@pytest.mark.parametrize(
    ("strategy", "more"),
    [
        ("standard", ()),
        ("last_1", ()),
        ("specific_k", ()),
        ("BlockReplace", ()),
        ("SpotTune_Block", ("--policy", "published")),
        ("BlockDrop", ("--policy", "random:0.3")),
        ("SpotTune_Block", ("--policy", "shared")),
    ],
)
def test_a_run_of_any_strategy_is_rebuilt_from_its_folder(runs, strategy, more):
    folder = runs(strategy, *more)
    run = open_run(folder)
    saved = load_checkpoint(folder / "BEST.safetensors")[0]["model"]
    torch.testing.assert_close(dict(run.model.state_dict()), saved, rtol=0, atol=0)
    assert not run.model.training


def test_the_ask_command_shows_answers_decisions_and_a_picture(runs, coco, capsys):
    folder = runs("SpotTune_Block")
    features = store(coco)
    image = str(VAL[0])
    assert (
        ask.main(
            [
                "--run",
                str(folder),
                "--features",
                str(features.path),
                "--image-id",
                image,
                "--question",
                "what is left?",
            ]
        )
        == 0
    )
    shown = capsys.readouterr().out
    assert "SpotTune_Block · VL-BERT" in shown and "layer.1" in shown and "layer.2" in shown
    assert list((folder / "ask").glob("*.png"))


def test_attention_is_shown_between_words_and_regions(runs, coco, capsys, tmp_path):
    folder = runs("SpotTune")
    run, features = open_run(folder), store(coco)
    regions, question = features.get(str(VAL[0])), "what is left?"
    check_places(run, regions, question, "left", "right")
    found = blocks_by_kind(run, regions, question)
    assert set(found) == {(a, b) for a in ("text", "region") for b in ("text", "region")}
    first = found["text", "text"]["layer.1"]
    assert [place.name for place in first.keys] == [
        *("[MASK]", "what", "is", "left", "?", "[SEP]"),  # the one that is read comes first
        *("[CLS]", "[SEP]", "[END]"),
    ]
    assert found["text", "region"]["layer.1"].keys[0].name == "image"
    for kind in ("text", "region"):
        assert float((mass(found, kind, "layer.1") - 1).abs().max()) < 1e-5
    words = ["--run", str(folder), "--features", str(features.path), "--image-id", str(VAL[0])]
    words += ["--question", question, "--out", str(tmp_path / "a.png")]
    assert ask.main([*words, "--attention", "layer.1:2", "--word", "left"]) == 0
    shown = capsys.readouterr().out
    assert "attention of layer.1, head 2: text → region" in shown
    assert "of the attention; the rest goes to the others" in shown


def plain(out: Path) -> ResNetVLBERT:
    """The exported model, built from nothing but its own file."""
    state, meta = load_checkpoint(out / "model.safetensors")
    model = ResNetVLBERT(NetworkConfig.from_dict(meta["config"]))
    model.load_state_dict(state["model"], strict=True)
    return model


@torch.no_grad()
def logits(model: nn.Module, inputs: dict[str, Tensor | None]) -> Tensor:
    """(questions, A), in float64."""
    doubled = {
        name: x.double() if x is not None and x.is_floating_point() else x
        for name, x in inputs.items()
    }
    return model.double().eval()(**doubled)


@pytest.mark.parametrize("strategy", MERGED)
def test_the_exported_model_gives_the_logits_of_the_global_evaluation(
    runs, config, tmp_path, strategy
):
    folder, out = runs(strategy), tmp_path / "out"
    assert (
        export.main(
            [
                "--run",
                str(folder),
                "--out",
                str(out),
                "--gpus",
                "cpu",
                "--quiet",
                "--global-k",
                "1" if strategy == "BlockDrop" else "2",
            ]
        )
        == 0
    )
    record = json.loads((out / "export.json").read_text())
    trained = result_of(folder, "")["accuracy"]["train"]["count"]
    assert record["decisions"]["from"] == f"{trained} training questions"
    source = VQASource(load_config(config))
    inputs = source.data(source.examples("val2014")).read(range(2 * len(VAL))).inputs()
    run = open_run(folder)
    run.adaptive.options.policy_eval = "global"
    run.adaptive.global_decisions.copy_(torch.tensor(record["decisions"]["global"]))
    model = plain(out)
    assert adaptive_part(model) is None
    expected = logits(run.model, inputs)
    torch.testing.assert_close(logits(model, inputs), expected, rtol=0, atol=1e-11)
    run.adaptive.global_decisions.copy_(1 - run.adaptive.global_decisions)
    assert (logits(run.model, inputs) - expected).abs().max() > 1e-4
    # The file is tested by the config that the run was made with, also with fewer layers.
    assert (
        predict(
            [
                "--cfg",
                str(config),
                "--ckpt",
                str(out / "model"),
                "--gpus",
                "cpu",
                "--split",
                "val2014",
                "--result-path",
                str(tmp_path),
                "--quiet",
            ]
        )
        == 0
    )
    if strategy == "BlockDrop":
        assert model.config.encoder.num_hidden_layers == 1


def image_config(coco: Path, folder: Path, **changes: object) -> Path:
    """The tiny config from images: a ResNet-18 that is trained from random weights."""
    for part, images in (("train2014", TRAIN), ("val2014", VAL)):
        (coco / part).mkdir(exist_ok=True)
        for image in images:
            noise = torch.randint(256, (48, 64, 3), generator=torch.Generator().manual_seed(image))
            picture = Image.fromarray(noise.to(torch.uint8).numpy())
            picture.save(coco / part / f"COCO_{part}_{image:012d}.jpg")
    return write_config(
        coco,
        SCALES=[32, 64],
        NETWORK__IMAGE_FEAT_PRECOMPUTED=False,
        **{
            "NETWORK__IMAGE_NUM_LAYERS": 18,
            "NETWORK__IMAGE_C5_DILATED": False,
            "NETWORK__IMAGE_FROZEN_BACKBONE_STAGES": [],
            "NETWORK__IMAGE_FROZEN_BN": False,
            "NETWORK__IMAGE_PRETRAINED": "",
            "TRAIN__BATCH_IMAGES": 4,
            "NETWORK__PARTIAL_PRETRAIN_PREFIX_CHANGES": [
                "module.vlbert.mlm_head.predictions.transform->module.final_mlp.0",
                "module.image_feature_extractor->unused",
            ],
        }
        | changes,
    )


FROM_IMAGES = ("--strategy", "SpotTune_Block", "--questions", "8", "--no-tensorboard")


def of_images(config: Path, out: Path, *more: str) -> list[str]:
    """How vqa/test.py predicts the validation questions with the run in `out`."""
    words = ["--cfg", str(config), "--model-dir", str(out), "--gpus", "cpu", "--split", "val2014"]
    return [*words, "--quiet", *more]


class StoredDetector(OwnDetector):
    """Finds in a picture what a store has of an image, as wide as the store is."""

    def __init__(self, regions: Regions) -> None:
        super().__init__(regions.features.shape[1])
        self.regions = regions

    def detect(self, picture: Image.Image) -> FoundRegions:
        ids, conf = (torch.zeros(len(self.regions.boxes), dtype=t) for t in (torch.long, None))
        return FoundRegions(self.regions.boxes, self.regions.features, ids, conf, ids, conf)


def test_training_from_images_trains_the_cnn_and_ask_reads_pictures_likewise(
    coco, tmp_path, capsys
):
    config = image_config(coco, tmp_path, NETWORK__PIXEL_MEANS=[90.0, 110.0, 130.0])
    assert main(flags(config, tmp_path, *FROM_IMAGES)) == 0
    assert "the CNN starts from random weights" in capsys.readouterr().out
    first, last = (
        load_checkpoint(tmp_path / FOLDER / f"{name}.safetensors")[0]["model"]
        for name in ("BEST", "LAST")
    )
    layer = "image_feature_extractor.backbone.conv1.weight"
    assert layer in last and torch.equal(first[layer], last[layer])
    assert len(result_of(tmp_path)["decisions"]["share"]) == 2
    assert predict(of_images(config, tmp_path)) == 0
    found = result_of(tmp_path)["accuracy"]["val"]["overall"]
    assert f"SpotTune_Block: overall {found:.2f}" in capsys.readouterr().out
    predicted = json.loads((tmp_path / FOLDER / "tiny_vqa2_val2014.json").read_text())
    check_pictures_asked(tmp_path / FOLDER, config, coco, predicted)
    check_commands_on_pictures(tmp_path / FOLDER, coco, capsys)
    words = ["--run", str(tmp_path / FOLDER), "--out", str(tmp_path / "plain"), "--global-k", "1"]
    assert export.main([*words, "--gpus", "cpu", "--quiet"]) == 0
    assert predict(of_images(config, tmp_path, "--ckpt", str(tmp_path / "plain" / "model"))) == 0
    config = image_config(coco, tmp_path, NETWORK__PIXEL_MEANS=[90.0, 111.0, 130.0])
    shown = refused(capsys, of_images(config, tmp_path), predict)
    assert "keys.NETWORK.PIXEL_MEANS is [90.0, 110.0, 130.0] in the file, this run" in shown


def picture_of(coco: Path, image: int) -> Path:
    return coco / "val2014" / f"COCO_val2014_{image:012d}.jpg"


@torch.no_grad()
def check_pictures_asked(
    folder: Path, config: Path, coco: Path, predicted: list[dict[str, object]]
) -> None:
    """A picture with the boxes of its image: the model's inputs are those of validation, to the
    bit, and so are the answers."""
    run, features = open_run(folder), store(coco)
    source = VQASource(load_config(config))
    data = source.data(source.examples("val2014"))
    rows = {row["question_id"]: row["answer"] for row in predicted}
    probabilities = set()
    for place, example in enumerate(data.examples[::3]):
        image = int(example.image_id.rpartition("_")[2])
        answerer = Answerer(run, StoredDetector(features.get(str(image))), OTHER_DETECTOR)
        looked = answerer.look(picture_of(coco, image))
        expected = data.read([3 * place]).inputs()
        found = run.make_inputs(make_batch(looked.regions, example.question, looked.picture))
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        answers = answerer.ask(looked, example.question, top=len(run.answers)).answers
        assert answers[0].text == rows[example.question_id]
        logits = run.model(**expected)[0]
        assert {run.answers.index(a.text): a.logit for a in answers} == dict(
            enumerate(logits.tolist())
        )
        probabilities.add(answers[0].probability)
    assert len(probabilities) == len(data.examples[::3]), "the pictures make a difference"


def check_commands_on_pictures(folder: Path, coco: Path, capsys) -> None:
    """`ask` reads a picture file beside a record, and says what is missing."""
    words = ["--run", str(folder), "--features", str(store(coco).path), "--question", "what is?"]
    words += ["--image-id", str(VAL[0])]
    assert "reads the pixels of the picture, and there is none" in refused(capsys, words, ask.main)
    words += ["--image", str(picture_of(coco, VAL[0]))]
    assert ask.main([*words, "--no-plots", "--attention", "layer.1"]) == 0
    assert "text → region" in capsys.readouterr().out
    state, meta = load_checkpoint(folder / "BEST.safetensors")
    del meta["keys"]["NETWORK"]["PIXEL_STDS"]
    earlier = folder.with_name("earlier")
    shutil.copytree(folder, earlier)
    save_checkpoint(earlier / "BEST.safetensors", state, meta)
    words[1] = str(earlier)
    shown = refused(capsys, words, ask.main)
    assert f"{earlier}/BEST.safetensors: meta: keys.NETWORK.PIXEL_STDS" in shown
    assert "vqa/test.py" in shown


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"NETWORK__IMAGE_FROZEN_BN": True}, "random weights would be frozen"),
        ({"NETWORK__IMAGE_PRETRAINED": "./nowhere/resnet"}, "nowhere/resnet-0000.model"),
        ({"NETWORK__PIXEL_MEANS": []}, "give three numbers each"),
    ],
)
def test_a_cnn_without_usable_weights_is_refused(coco, tmp_path, capsys, changes, message):
    assert message in refused(capsys, flags(image_config(coco, tmp_path, **changes), tmp_path))


@pytest.mark.slow
def test_the_cnn_is_loaded_from_a_file_with_torchvision_s_names(coco, tmp_path, capsys):
    config = image_config(coco, tmp_path)
    assert main(flags(config, tmp_path / "a", "--questions", "8", "--no-tensorboard")) == 0
    state = load_checkpoint(tmp_path / "a" / FOLDER / "LAST.safetensors")[0]["model"]
    prefix = "image_feature_extractor."
    weights = {}
    for name, x in state.items():
        if name.startswith(f"{prefix}backbone."):
            weights[name.removeprefix(f"{prefix}backbone.")] = x
        elif name.startswith(f"{prefix}roi_head_feature_extractor."):
            weights["layer4." + name.removeprefix(f"{prefix}roi_head_feature_extractor.")] = x
    torch.save(weights, tmp_path / "resnet-0000.model")
    config = image_config(
        coco,
        tmp_path,
        NETWORK__IMAGE_PRETRAINED=str(tmp_path / "resnet"),
        NETWORK__IMAGE_FROZEN_BACKBONE_STAGES=[1, 2],
        NETWORK__IMAGE_FROZEN_BN=True,
    )
    assert main(flags(config, tmp_path / "b", "--questions", "8", "--no-tensorboard")) == 0
    after = load_checkpoint(tmp_path / "b" / FOLDER / "LAST.safetensors")[0]["model"]
    changed = {
        name
        for name, x in state.items()
        if name.startswith(prefix) and not torch.equal(x, after[name])
    }
    frozen = f"{prefix}backbone.layer1.0.conv1.weight"
    assert frozen in state and frozen not in changed
    assert f"{prefix}backbone.layer3.0.conv1.weight" in changed
    assert not any("running_mean" in name for name in changed)


def test_a_picture_is_asked_about_by_the_detector_of_the_run(runs, tmp_path):
    check_asked(runs("SpotTune_Block"), "what is left?", tmp_path)


def test_weights_of_another_detector_are_refused_or_taken(runs, coco, tmp_path, capsys):
    """In a test; and at the start of a run, from weights that remember their features."""
    shutil.copytree(runs("SpotTune_Block"), tmp_path / "run")
    best = tmp_path / "run" / "BEST.safetensors"
    config = write_config(coco, **SETTINGS)  # other tests write others in its place
    words = ["--cfg", str(config), "--ckpt", str(best), "--gpus", "cpu", "--split", "val2014"]
    words += ["--result-path", str(tmp_path), "--quiet"]
    check_commands(predict, words, best, capsys)
    start = tmp_path / "start.safetensors"
    shutil.copy(runs("standard") / "BEST.safetensors", start)
    begun = ["--partial-pretrain", str(start), "--questions", "4", "--epochs", "1", "--overwrite"]
    words = flags(config, tmp_path / "out", *begun, "--no-tensorboard")
    check_commands(main, words, start, capsys)
