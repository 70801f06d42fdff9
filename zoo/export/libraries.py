"""timm, sentence-transformers and open_clip: models in each library's own terms."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo.errors import ZooError
from zoo.export.common import SAMPLES, Scaled, Usage, compare, pixels, sample_images, unfit
from zoo.methods.towers import UnitNorm, distinct
from zoo.runs import Run


def to_timm(run: Run, folder: Path) -> Usage:
    """A folder, or one for each tower, that `timm.create_model("local-dir:...")` reads."""
    import timm
    from timm.models import save_for_hf

    towers: dict[str, Any] = distinct(run.towers)
    code = ["import timm", "import torch", ""]
    notes: list[str] = []
    for name, tower in towers.items():
        if not hasattr(tower[0], "timm_model") or not all(isinstance(part, UnitNorm) for part in list(tower)[1:]):
            raise unfit(run, "timm", f"its {type(tower[0]).__name__} is no timm model")
        try:
            model = copy.deepcopy(tower[0].timm_model()).to(memory_format=torch.contiguous_format)
        except ZooError as error:
            raise unfit(run, "timm", str(error)) from None
        place, size = folder if len(towers) == 1 else folder / name, pixels(run, tower)
        shape = (3, size.height, size.width)
        given = {"input_size": shape, "mean": size.mean, "std": size.std, "crop_pct": 1.0, "num_classes": 0}
        model.pretrained_cfg = {**model.pretrained_cfg, **given}
        save_for_hf(model, str(place), model_config={"num_classes": 0}, safe_serialization=True)
        images = Scaled(size)(sample_images(size, 2))
        compare("timm", tower[0](images), timm.create_model(f"local-dir:{place}", pretrained=True).eval()(images))
        variable = "model" if len(towers) == 1 else name
        code += [f'{variable} = timm.create_model("local-dir:{place.relative_to(folder)}", pretrained=True).eval()']
        code += [
            f"images = torch.zeros(2, {', '.join(map(str, shape))})  # normalised",
            f"print({variable}(images).shape)",
        ]
        notes.append(
            f"images `[B, {', '.join(map(str, shape))}]`, of values from 0 to 1 minus {list(size.mean)} over {list(size.std)}"
        )
        if len(tower) > 1:
            notes.append("scores are cosines: normalise the features")
    notes.append("`model.safetensors` is what `timm.create_model(NAME, num_classes=0, checkpoint_path=...)` reads")
    return Usage("\n".join(code), [*dict.fromkeys(notes)], ("timm",))


def to_sentence_transformers(run: Run, folder: Path) -> Usage:
    """A folder that `SentenceTransformer(path)` reads."""
    import sentence_transformers as st
    from sentence_transformers.base.modules import Router

    towers, to = run.towers, "sentence-transformers"
    if any(tower.reads != "texts" or not hasattr(tower[0], "sentence_transformers") for tower in towers.values()):
        raise unfit(run, to, f"its {type(next(iter(towers.values()))[0]).__name__} is no model of that library")
    tokenizer, kept = run.data.tokenizer, distinct(towers)

    def modules(name: str) -> list[Any]:
        tower = towers[name]
        sides = [t.side for t in towers.values() if t.parts == tower.parts]
        try:
            return [*tower[0].sentence_transformers(tokenizer, sides), *map(_module, list(tower)[1:])]
        except ZooError as error:
            raise unfit(run, to, str(error)) from None

    asymmetric = len(kept) > 1
    chain: Any = (
        [Router.for_query_document(modules("query"), modules("document"))]
        if asymmetric
        else modules(next(iter(towers)))
    )
    prompts = {side: prefix for side, prefix in tokenizer.prefixes.items() if prefix}
    model = st.SentenceTransformer(modules=chain, prompts=prompts, device="cpu")
    model.save(str(folder), create_model_card=False)
    loaded = st.SentenceTransformer(str(folder), device="cpu")
    encode = {"query": loaded.encode_query, "document": loaded.encode_document}
    for name, tower in towers.items():
        theirs = encode[tower.side](list(SAMPLES), convert_to_tensor=True, show_progress_bar=False)
        compare(to, run.embed(list(SAMPLES), name), theirs)
    limits = {t.side: tokenizer.lengths[t.side] for t in towers.values()}
    notes = [f"the run cut texts after {' and '.join(f'{n} tokens ({side})' for side, n in limits.items())}"]
    notes += [f"each {side} is read behind {prefix!r}, which the library adds" for side, prefix in prompts.items()]
    code = """\
from sentence_transformers import SentenceTransformer

model = SentenceTransformer(".")
queries = model.encode_query(["read a file"])
documents = model.encode_document(["def read(path): return open(path).read()"])
print((queries @ documents.T).shape)"""
    return Usage(code, notes, (to, "transformers"))


def _module(part: nn.Module) -> Any:
    from sentence_transformers.base.modules import Dense, Normalize

    if isinstance(part, UnitNorm):
        return Normalize()
    if isinstance(part, nn.Linear):
        weight, bias = part.weight.detach().clone(), None if part.bias is None else part.bias.detach().clone()
        return Dense(part.in_features, part.out_features, bias is not None, nn.Identity(), weight, bias)
    raise ZooError(f"it has no {type(part).__name__}")


def to_open_clip(run: Run, folder: Path) -> Usage:
    """Weights and configuration for `open_clip.create_model`, and the tokenizer where the run has its own."""
    import open_clip

    encoder = run.model.encoder
    if not hasattr(encoder, "save_open_clip"):
        raise unfit(run, "open_clip", f"its {type(encoder).__name__} is no model of open_clip")
    images, texts = (next(t for t in run.towers.values() if t.reads == kind) for kind in ("images", "texts"))
    size, config, file = pixels(run, images), open_clip.get_model_config(encoder.name), "open_clip_pytorch_model.bin"
    encoder.save_open_clip(folder / file, run.model.loss.temperature)
    preprocess = {"size": [size.height, size.width], "mean": size.mean, "std": size.std, "resize_mode": "shortest"}
    for name, content in {
        "open_clip_config.json": {"model_cfg": config, "preprocess_cfg": preprocess},
        f"{encoder.name}.json": config,
    }.items():
        (folder / name).write_text(json.dumps(content, indent=1) + "\n")
    loaded: Any = open_clip.create_model(encoder.name, pretrained=str(folder / file)).eval()
    shown, tokens = Scaled(size)(sample_images(size, 2)), run.data.tokenizer(list(SAMPLES), texts.side)
    ids = nn.functional.pad(tokens.ids, (0, texts[0].context - tokens.ids.shape[1]), value=texts[0].pad_id or 0)
    with torch.no_grad():
        compare("open_clip", images[0](shown), loaded.encode_image(shown))
        compare("open_clip", texts[0](tokens), loaded.encode_text(ids))
    code = [
        "import open_clip",
        "import torch",
        "from PIL import Image",
        "",
        'model, preprocess = open_clip.create_model_from_pretrained("local-dir:.")',
        f'image = preprocess(Image.new("RGB", ({size.width}, {size.height})))[None]',
    ]
    try:
        run.data.tokenizer.portable().save(str(folder / "tokenizer.json"))
        code += [
            "from tokenizers import Tokenizer",
            'tokenizer = Tokenizer.from_file("tokenizer.json")',
            f"tokenizer.enable_padding(length={texts[0].context}, pad_id={texts[0].pad_id or 0})",
            f"tokenizer.enable_truncation({run.data.tokenizer.lengths[texts.side]})",
            f'tokens = torch.tensor([tokenizer.encode("{SAMPLES[0]}").ids])',
        ]
    except ZooError:
        code += [f'tokens = open_clip.get_tokenizer("{encoder.name}")(["{SAMPLES[0]}"])']
    code += [
        "image, text = model.encode_image(image, normalize=True), model.encode_text(tokens, normalize=True)",
        "print((image @ text.T * model.logit_scale.exp()).shape)",
    ]
    notes = [
        f'`open_clip.add_model_config("{encoder.name}.json")`, unless open_clip knows the name, and then '
        f'`open_clip.create_model("{encoder.name}", pretrained="{file}")` gives the same model'
    ]
    return Usage("\n".join(code), notes, ("open_clip_torch",))
