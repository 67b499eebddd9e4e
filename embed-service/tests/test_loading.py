"""Real architectures with random weights, from files to vectors, against open_clip and torchvision themselves."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import open_clip
import pytest
import torch
import torchvision
from embed_fakes import PREPROCESS, kept, scenery, write_narrow_resnet, write_tiny_clip
from embed_service import towers
from embed_service.app import create_app
from embed_service.artifact_cache import get_artifact, order_for
from embed_service.catalogue import find, wanted
from embed_service.conversion import convert
from embed_service.loading import Model, load_all, load_model
from embed_service.settings import Settings
from embed_service.tokens import PROBES
from PIL import Image
from pixelgate_common.contracts.embed import Embedded
from pixelgate_common.inference.errors import ModelChanged, ModelProblem, NotEnoughMemory, WrongAnswer
from pixelgate_common.vectors import decode_vector, encode_vector

Vectors = npt.NDArray[np.float32]
TEXTS = [
    "a cat",
    "two dogs and a red bus on a green background",
    "naïve 東京 café, 12 €",
    " ".join(["many words"] * 60),
]


def pictures() -> list[bytes]:
    data = []
    for size in ((512, 384), (300, 500), (224, 224)):
        file = BytesIO()
        scenery(*size).save(file, "JPEG", quality=90)
        data.append(file.getvalue())
    return data


def prepare_cache(settings: Settings) -> None:
    """Convert what `settings` want in this process, which has torch already; a child of its own has a test below."""
    for sources in wanted(settings).values():
        for source in sources:
            order = order_for(source, settings.cache_dir, half=settings.precision != "fp32")
            if not order.target.exists():
                with order.draft() as folder:
                    convert(order, folder)


def load(settings: Settings) -> dict[str, list[Model]]:
    prepare_cache(settings)
    return {slot: [resident.current for resident in some] for slot, some in load_all(settings).items()}


def smallest_cosine(ours: Vectors, theirs: Vectors) -> float:
    assert np.abs(np.linalg.norm(ours, axis=1) - 1).max() < 1e-3
    return float((ours * theirs / np.linalg.norm(theirs, axis=1, keepdims=True)).sum(axis=1).min())


def image_vectors(model: Model, files: list[bytes]) -> Vectors:
    return model.infer_images([model.prepare_image(file) for file in files])


def text_vectors(model: Model, texts: list[str]) -> Vectors:
    assert model.text is not None
    return model.text.infer(model.text.prepare(texts))


@pytest.fixture(scope="module")
def standard(model_dir: Path) -> dict[str, list[Model]]:
    """The standard set: ViT-B-32 and ResNet34 under the names and in the files of their publishers."""
    return load(Settings(models="standard", model_dir_set=model_dir, threads=2))


def test_vit_b_32_gives_open_clips_vectors(standard: dict[str, list[Model]], model_dir: Path) -> None:
    (model,) = standard["clip"]
    weights = model_dir / "clip/ViT-B-32/laion2b_s34b_b79k/open_clip_model.safetensors"
    theirs, _, preprocess = open_clip.create_model_and_transforms("ViT-B-32", pretrained=str(weights))
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    theirs.eval()
    with torch.no_grad():
        images = theirs.encode_image(torch.stack([preprocess(Image.open(BytesIO(file))) for file in pictures()]))
        texts = theirs.encode_text(tokenizer(TEXTS))
    assert smallest_cosine(image_vectors(model, pictures()), images.numpy()) > 0.999
    assert smallest_cosine(text_vectors(model, TEXTS), texts.numpy()) > 0.999
    one_by_one = np.concatenate([text_vectors(model, [text]) for text in TEXTS])
    assert smallest_cosine(one_by_one, texts.numpy()) > 0.999, "a text's company and padding do not change its vector"


def test_resnet34_gives_torchvisions_features(standard: dict[str, list[Model]], model_dir: Path) -> None:
    (model,) = standard["resnet"]
    theirs = torchvision.models.resnet34()
    theirs.load_state_dict(torch.load(model_dir / "resnet/resnet34/IMAGENET1K_V1/resnet34-b627a593.pth"))
    theirs.fc = torch.nn.Identity()
    theirs.eval()
    transform = torchvision.models.ResNet34_Weights.IMAGENET1K_V1.transforms()
    with torch.no_grad():
        features = theirs(torch.stack([transform(Image.open(BytesIO(file))) for file in pictures()]))
    assert model.about.dim == 512
    assert smallest_cosine(image_vectors(model, pictures()), features.numpy()) > 0.999


async def test_the_standard_set_answers_over_http(standard: dict[str, list[Model]], model_dir: Path) -> None:
    settings = Settings(models="standard", model_dir_set=model_dir, threads=2)
    app = create_app(settings, models=kept(standard))
    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://x") as http:
        files = [("images", ("a.jpg", file)) for file in pictures() * 7]
        answer = Embedded.model_validate((await http.post("/v1/embed/images", files=files)).json())
        texts = Embedded.model_validate((await http.post("/v1/embed/texts", json={"texts": TEXTS})).json())
    ours = np.stack([decode_vector(item.vector) for item in answer.items if item.vector])
    assert ours.shape == (21, 512)
    assert smallest_cosine(ours, np.tile(image_vectors(standard["clip"][0], pictures()), (7, 1))) > 0.9995
    assert texts.dim == 512
    assert len(texts.items) == len(TEXTS)


@pytest.fixture
def tiny(settings: Settings, tmp_path: Path, shared_cache: Path) -> Settings:
    """A service of a tiny CLIP in a local folder and a narrow ResNet34."""
    clip, resnet = write_tiny_clip(tmp_path / "tiny"), write_narrow_resnet(tmp_path / "narrow")
    return settings.model_copy(
        update={"clip_model": str(clip), "resnet_model": str(resnet), "cache_dir_set": shared_cache}
    )


def test_fp32_and_bf16_are_one_space(tiny: Settings) -> None:
    coarse = load(tiny.model_copy(update={"precision": "bf16"}))
    exact = load(tiny.model_copy(update={"precision": "fp32"}))
    for slot in ("clip", "resnet"):
        (a,), (b,) = coarse[slot], exact[slot]
        assert (a.about.precision, b.about.precision) == ("bf16", "fp32")
        assert a.about.fingerprint == b.about.fingerprint
        assert smallest_cosine(image_vectors(a, pictures()), image_vectors(b, pictures())) > 0.999
    assert smallest_cosine(text_vectors(coarse["clip"][0], TEXTS), text_vectors(exact["clip"][0], TEXTS)) > 0.999


def test_torch_itself_can_serve_and_gives_the_same(tiny: Settings) -> None:
    graphs, modules = load(tiny), load(tiny.model_copy(update={"backend": "torch"}))
    for slot in ("clip", "resnet"):
        (a,), (b,) = graphs[slot], modules[slot]
        assert (a.about.backend, b.about.backend) == ("openvino", "torch")
        assert a.about.fingerprint == b.about.fingerprint
        assert smallest_cosine(image_vectors(a, pictures()), image_vectors(b, pictures())) > 0.999
    assert smallest_cosine(text_vectors(graphs["clip"][0], TEXTS), text_vectors(modules["clip"][0], TEXTS)) > 0.999


def test_a_narrow_resnet34_has_features_of_its_width(tiny: Settings) -> None:
    (model,) = load(tiny)["resnet"]
    assert (model.about.dim, model.about.image_size_px) == (64, 64)


def test_the_fingerprint_follows_weights_and_preprocessing_and_not_the_folder(
    settings: Settings, tmp_path: Path, shared_cache: Path
) -> None:
    settings = settings.model_copy(update={"cache_dir_set": shared_cache, "resnet_model": "none"})

    def of(folder: Path) -> str:
        load(chosen := settings.model_copy(update={"clip_model": str(folder)}))
        return get_artifact(find(chosen, "clip", str(folder)), chosen.cache_dir, half=True).fingerprint

    first = of(write_tiny_clip(tmp_path / "a"))
    moved = Path(shutil.copytree(tmp_path / "a", tmp_path / "b"))
    others = (
        of(write_tiny_clip(tmp_path / "c", seed=1)),
        of(write_tiny_clip(tmp_path / "d", preprocess={**PREPROCESS, "resize_mode": "shortest"})),
    )
    assert of(moved) == first
    assert len({first, *others}) == 3


def run_python(code: str, settings: Settings) -> subprocess.CompletedProcess[str]:
    environment = {
        "PIXELGATE_CLIP_MODEL": settings.clip_model or "",
        "PIXELGATE_RESNET_MODEL": settings.resnet_model or "",
        "PIXELGATE_DATA_DIR": str(settings.data_dir),
        **({"PIXELGATE_EMBED_CACHE_DIR": str(settings.cache_dir_set)} if settings.cache_dir_set else {}),
        "PATH": "/usr/bin:/bin",
    }
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def test_the_first_start_converts_in_a_child_and_no_start_needs_torch_or_reports_to_anybody(tiny: Settings) -> None:
    code = (
        "import sys\n"
        "from embed_service.loading import load_all\n"
        "from embed_service.settings import Settings\n"
        "models = load_all(Settings())\n"
        "heavy = {'torch', 'torchvision', 'open_clip', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert sys.modules['openvino_telemetry'] is None\n"
        "print([some[0].current.about.fingerprint for some in models.values()])\n"
    )
    first = run_python(code, tiny.model_copy(update={"cache_dir_set": None}))
    assert first.returncode == 0, first.stderr
    here = [some[0].about.fingerprint for some in load(tiny).values()]
    assert first.stdout.strip().splitlines()[-1] == str(here)


def test_other_weights_under_a_known_name_are_refused(settings: Settings, shared_cache: Path) -> None:
    folder = settings.model_dir / "clip" / "mine" / "v1"
    write_tiny_clip(folder)
    settings = settings.model_copy(
        update={"clip_model": "mine/v1", "resnet_model": "none", "cache_dir_set": shared_cache}
    )
    load(settings)
    write_tiny_clip(folder, seed=1)
    with pytest.raises(ModelChanged, match="mine/v1 has other weights"):
        load(settings)


@pytest.fixture
def falsified(tiny: Settings) -> Settings:
    """A service whose model's recorded text vector is not what the model gives."""
    load(tiny)
    lock = tiny.model_dir / "models.lock"
    content = json.loads(lock.read_text())
    entry = content["embed"][f"clip:{tiny.clip_model}"]
    vector = decode_vector(entry["text"])
    entry["text"] = encode_vector(np.roll(vector, 1))
    lock.write_text(json.dumps(content))
    return tiny


def test_a_model_that_gives_another_vector_than_recorded_is_refused(falsified: Settings) -> None:
    with pytest.raises(WrongAnswer, match="another vector for the known text"):
        load_all(falsified)


async def test_a_model_that_left_memory_comes_back_only_if_it_is_still_the_same(tiny: Settings) -> None:
    prepare_cache(tiny)
    (resident,) = load_all(tiny)["resnet"]
    await resident.unload()
    assert resident.state == "idle"
    async with resident.use() as model:
        again = image_vectors(model, pictures()[:1])
        assert again.shape == (1, 64)
        del model
    await resident.unload()
    write_narrow_resnet(Path(str(tiny.resnet_model)), size=32)
    prepare_cache(tiny)
    with pytest.raises(ModelChanged):
        async with resident.use():
            pass


def test_a_model_for_which_there_is_no_memory_is_refused_with_figures(tiny: Settings) -> None:
    prepare_cache(tiny)
    with pytest.raises(
        NotEnoughMemory, match=r"clip: .* needs about \d+ MB of memory; PIXELGATE_MODEL_MEMORY_MB has 1 MB"
    ):
        load_all(tiny.model_copy(update={"model_memory_mb": 1}))


def test_the_service_refuses_to_start_with_one_plain_line(falsified: Settings) -> None:
    ended = run_python("from embed_service.main import main; main()", falsified)
    assert ended.returncode == 3
    assert "Traceback" not in ended.stderr
    last = json.loads(ended.stderr.strip().splitlines()[-1])
    assert last["event"] == "cannot_start"
    assert "another vector for the known text" in last["reason"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        pytest.param("ViT-Q-99/laion2b", "knows no architecture ViT-Q-99", id="an unknown architecture"),
        pytest.param("ViT-B-32/my_own_tag", "its preprocessing is unknown", id="an unknown tag"),
        pytest.param("ViT-B-32/openai", "use ViT-B-32-quickgelu/openai", id="another activation"),
        pytest.param("ViT-B-16/laion2b_s34b_b88k", "cannot be loaded", id="weights of another model"),
    ],
)
def test_names_that_do_not_fit_are_refused(settings: Settings, tmp_path: Path, name: str, says: str) -> None:
    weights = write_tiny_clip(tmp_path / "tiny") / "open_clip_model.safetensors"
    folder = settings.model_dir / "clip" / name
    folder.mkdir(parents=True)
    shutil.copy(weights, folder)
    with pytest.raises(ModelProblem, match=says):
        towers.load(find(settings, "clip", name))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        pytest.param({"preprocess_cfg": None}, "no preprocess_cfg", id="no preprocessing (open_clip#1068)"),
        pytest.param({"model_cfg": None}, "no model_cfg", id="no model"),
        pytest.param({"preprocess_cfg": {"std": [1, 1, 1]}}, "no mean", id="half a preprocessing"),
    ],
)
def test_a_local_folder_must_say_everything(
    settings: Settings, tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    folder = write_tiny_clip(tmp_path / "tiny")
    config = json.loads((folder / "open_clip_config.json").read_text()) | change
    (folder / "open_clip_config.json").write_text(json.dumps({key: value for key, value in config.items() if value}))
    with pytest.raises(ModelProblem, match=says):
        towers.load(find(settings, "clip", str(folder)))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"architecture": "resnet50"}, "not resnet34"),
        ({"image_size": None}, "no image_size"),
        ({"interpolation": None}, "no interpolation"),
        ({"mean": None}, "no mean"),
        ({"width": 16}, "cannot be loaded"),
    ],
    ids=str,
)
def test_a_resnet_must_say_everything(settings: Settings, tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    folder = write_narrow_resnet(tmp_path / "narrow", **changes)
    if "width" in changes:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"width": 8}))
    with pytest.raises(ModelProblem, match=says):
        towers.load(find(settings, "resnet", str(folder)))


def test_unknown_torchvision_weights_are_refused(settings: Settings, tmp_path: Path) -> None:
    folder = settings.model_dir / "resnet" / "resnet34" / "MINE"
    folder.mkdir(parents=True)
    shutil.copy(write_narrow_resnet(tmp_path / "narrow") / "model.safetensors", folder)
    with pytest.raises(ModelProblem, match="knows no weights MINE of resnet34"):
        towers.load(find(settings, "resnet", "resnet34/MINE"))


def test_the_light_tokenizer_gives_open_clips_ids(standard: dict[str, list[Model]]) -> None:
    side = standard["clip"][0].text
    assert side is not None
    assert side.artifact.text is not None
    assert side.artifact.text.light
    rng = np.random.default_rng(3)
    alphabet = [*"aäßñ éTHE'sll12 ,.!?-_—🦊🚲東京мир\t\n&;<>", "the ", "photo ", "'re ", "&amp;", " a "]
    random_texts = ["".join(rng.choice(alphabet, size=int(rng.integers(1, 60)))) + "x" for _ in range(300)]
    texts = [*PROBES, *TEXTS, *random_texts]
    assert np.array_equal(side.tokenize(texts), np.asarray(open_clip.get_tokenizer("ViT-B-32")(texts)))


def test_an_artifact_that_is_half_made_is_made_again(tiny: Settings) -> None:
    prepare_cache(tiny)
    source = find(tiny, "resnet", str(tiny.resnet_model))
    order = order_for(source, tiny.cache_dir, half=True)

    def interrupted() -> None:
        with order.draft() as folder:
            (folder / "image.xml").write_text("half")
            raise KeyboardInterrupt

    shutil.rmtree(order.target)
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not order.target.exists()
    prepare_cache(tiny)
    assert load_model(source, tiny).about.slot == "resnet"
    assert not list(tiny.cache_dir.glob("embed/.*")), "nothing is left behind"


def test_the_starter_models_give_the_vectors_recorded_for_them(settings: Settings, shared_cache: Path) -> None:
    starter = Settings.model_fields["starter_dir"].default
    chosen = settings.model_copy(update={"models": "starter", "starter_dir": starter, "cache_dir_set": shared_cache})
    recorded = json.loads((Path(towers.__file__).parent / "data" / "golden.json").read_text())
    fingerprints = {some[0].about.fingerprint for some in load(chosen).values()}
    assert fingerprints == set(recorded), "the weights have changed: run `python -m embed_service.record_golden`"
    assert not (chosen.model_dir / "models.lock").exists(), "what is recorded here needs no record there"
