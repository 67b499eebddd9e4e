"""Conversion and loading, on small BLIPs of random weights and once on the whole of BLIP base."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from blip_folders import BASE, change, convert_here, png, scenery, write_blip
from caption_service import decoding, golden
from caption_service.artifacts import Artifact
from caption_service.catalogue import find, wanted
from caption_service.decoding import PlainGuide, Runner
from caption_service.loading import Job, load_all, make_model
from caption_service.pixels import fit
from caption_service.runners import OpenVinoRunner
from caption_service.settings import Settings
from pixelgate_common.inference.errors import ModelChanged, ModelProblem, NotEnoughMemory, WrongAnswer
from pixelgate_common.inference.openvino_runtime import cpu_has_bf16


def told_by_transformers(settings: Settings, pictures: list[np.ndarray], count: int) -> list[list[int]]:
    from caption_service import blip

    loaded = blip.load(wanted(settings)[0])
    said = []
    for pixels in pictures:
        values = (pixels / 255 - np.array(loaded.preprocess.mean)) / np.array(loaded.preprocess.std)
        tokens, _ = blip.reference_tokens(loaded, values.transpose(2, 0, 1).astype(np.float32), count)
        said.append(tokens)
    return said


def told_by(runner: Runner, artifact: Artifact, pictures: list[np.ndarray], count: int) -> list[list[int]]:
    guides = [PlainGuide(artifact.vocabulary.end_id, count) for _ in pictures]
    decoding.speak(runner, pictures, guides, artifact.vocabulary.begin_id)
    return [guide.tokens for guide in guides]


@pytest.mark.parametrize("backend", ["openvino", "torch"])
def test_a_batch_in_fp32_says_token_for_token_what_transformers_says_of_each(small: Settings, backend: str) -> None:
    artifact = convert_here(small, half=False)
    pictures = [fit(scenery(90, 70, seed), artifact.preprocess) for seed in range(5)]
    reference = told_by_transformers(small, pictures, 24)
    assert len({tuple(tokens) for tokens in reference}) > 1, "the model sees"
    runner: Runner
    if backend == "openvino":
        runner = OpenVinoRunner(artifact, "fp32", 2)
    else:
        from caption_service import blip

        runner = blip.TorchRunner(blip.load(wanted(small)[0]), "cpu", "fp32")
    assert told_by(runner, artifact, pictures, 24) == reference


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_batch_gives_what_single_pictures_give(small: Settings, precision: str) -> None:
    if precision == "bf16" and not cpu_has_bf16():
        pytest.skip("this CPU does not compute in bf16")
    (model,) = load_all(small.model_copy(update={"precision": precision}))
    loaded = model.resident.current
    jobs = [
        Job(model.prepare(png(scenery(80, 60, seed))), least, most)
        for seed, (least, most) in enumerate([(0, 30), (4, 4), (0, 2), (10, 12), (0, 60)])
    ]
    single = [loaded.caption([job])[0] for job in jobs]
    assert loaded.caption(jobs) == single
    assert [len(single[1].split()), len(single[3].split()) in (10, 11, 12)] == [4, True]
    assert loaded.caption(jobs[:2]) == single[:2], "after a larger batch"


def test_a_folder_as_published_in_2022_is_converted_in_a_child(settings: Settings, tmp_path: Path) -> None:
    folder = write_blip(tmp_path / "old", old_files=True)
    settings = settings.model_copy(update={"caption_model": str(folder)})
    home = tmp_path / "home"
    home.mkdir()
    before = os.environ.get("HOME")
    os.environ["HOME"] = str(home)
    try:
        (model,) = load_all(settings)
    finally:
        os.environ["HOME"] = before or ""
    assert model.about().state == "loaded"
    assert list(home.rglob("*")) == [], "nothing is written home"
    entry = json.loads(settings.lock_path.read_text())["caption"][str(folder)]
    assert entry["fingerprint"] == model.fingerprint
    assert entry["caption"]


def test_torch_in_bf16_answers_the_golden_question(small: Settings) -> None:
    (model,) = load_all(small.model_copy(update={"precision": "bf16", "backend": "torch"}))
    assert (model.about().backend, model.about().precision) == ("torch", "bf16")
    assert len(model.resident.current.caption([Job(model.prepare(golden.picture_bytes()), 5, 5)])[0].split()) == 5


def test_a_pickle_that_would_run_code_is_refused(settings: Settings, tmp_path: Path) -> None:
    import torch
    from caption_service import blip

    class Code:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "run"),)

    folder = write_blip(tmp_path / "old", old_files=True)
    torch.save({"text_decoder.cls.predictions.bias": Code()}, folder / "pytorch_model.bin")
    with pytest.raises(ModelProblem, match="cannot be loaded"):
        blip.load(find(settings, str(folder)))
    assert not (tmp_path / "run").exists()


def test_weights_that_do_not_fit_the_configuration_are_refused(
    settings: Settings, small_blip: Path, tmp_path: Path
) -> None:
    from caption_service import blip

    folder = Path(shutil.copytree(small_blip, tmp_path / "blip"))
    config = json.loads((folder / "config.json").read_text())
    change(folder, "config.json", text_config={**config["text_config"], "num_hidden_layers": 3})
    with pytest.raises(ModelProblem, match="does not hold the weights"):
        blip.load(find(settings, str(folder)))
    change(folder, "config.json", text_config=config["text_config"])
    change(folder, "preprocessor_config.json", size={"height": 96, "width": 96})
    with pytest.raises(ModelProblem, match=r"preprocessor_config\.json makes pictures of 96 px"):
        blip.load(find(settings, str(folder)))
    (folder / "tokenizer.json").unlink()
    change(folder, "preprocessor_config.json", size={"height": 64, "width": 64})
    with pytest.raises(ModelProblem, match=r"neither tokenizer\.json nor vocab\.txt"):
        blip.load(find(settings, str(folder)))
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")
    with pytest.raises(ModelProblem, match=r"knows \d tokens"):
        blip.load(find(settings, str(folder)))


def test_a_name_that_stands_for_other_weights_is_refused(small: Settings) -> None:
    load_all(small)
    lock = json.loads(small.lock_path.read_text())
    (entry,) = lock["caption"].values()
    entry["weights_sha256"] = "0" * 64
    small.lock_path.write_text(json.dumps(lock))
    with pytest.raises(ModelChanged, match="other weights"):
        load_all(small)


def test_a_model_that_answers_otherwise_is_refused(small: Settings) -> None:
    load_all(small)
    lock = json.loads(small.lock_path.read_text())
    (entry,) = lock["caption"].values()
    right = dict(entry)
    entry["tokens"] = [number + 1 for number in right["tokens"]]
    small.lock_path.write_text(json.dumps(lock))
    with pytest.raises(WrongAnswer, match="scores words otherwise"):
        load_all(small.model_copy(update={"precision": "fp32"}))
    entry.update(right, caption="another")
    small.lock_path.write_text(json.dumps(lock))
    with pytest.raises(WrongAnswer, match="recorded is 'another'"):
        load_all(small.model_copy(update={"precision": "fp32"}))


def test_bf16_that_is_too_coarse_is_left_for_fp32(small: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(golden.MIN_COSINE, "bf16", 1.1)
    if not cpu_has_bf16():
        pytest.skip("this CPU does not compute in bf16")
    (model,) = load_all(small)
    assert model.about().precision == "fp32"
    with pytest.raises(WrongAnswer):
        load_all(small.model_copy(update={"precision": "bf16"}))


def test_a_model_that_does_not_fit_is_not_loaded(small: Settings) -> None:
    with pytest.raises(NotEnoughMemory, match="PIXELGATE_MODEL_MEMORY_MB"):
        load_all(small.model_copy(update={"model_memory_mb": 1}))


async def test_an_idle_model_leaves_memory_and_comes_back(small: Settings) -> None:
    model = make_model(wanted(small)[0], small)
    assert model.about().state == "idle"
    job = Job(model.prepare(golden.picture_bytes()), 0, 30)
    async with model.resident.use() as loaded:
        assert model.about().state == "loaded"
        first = loaded.caption([job])
    del loaded
    await model.resident.unload()
    assert model.about().state == "idle"
    async with model.resident.use() as loaded:
        assert loaded.caption([job]) == first


async def test_blip_base_is_converted_captions_and_gives_its_memory_back(settings: Settings, tmp_path: Path) -> None:
    """The one test with the whole architecture: 250 million parameters, about a minute."""
    folder = write_blip(tmp_path / "base", BASE, words=30_000)
    settings = settings.model_copy(update={"caption_model": str(folder)})
    convert_here(settings, half=cpu_has_bf16())
    model = make_model(wanted(settings)[0], settings)
    before = resident_mb()
    async with model.resident.use() as loaded:
        (caption,) = loaded.caption([Job(model.prepare(png(scenery(300, 200))), 5, 5)])
        assert len(caption.split()) == 5
        full = resident_mb()
    del loaded
    await model.resident.unload()
    assert full - before > 400
    assert resident_mb() - before < 0.35 * (full - before)


def resident_mb() -> float:
    """This process's memory, without pages of files that the system may drop at any time."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no RssAnon")
