"""Classes of objects as patho-sam and micro-sam find them: the reference that slidesam's classes are compared with.

Runs in a process of its own and imports micro_sam, scikit-learn, NumPy and the standard library only, never slidesam. patho-sam
isn't on PyPI; `semantic` does what its `get_semantic_predictor_and_segmenter` and segmenters do.

    python -m tests.support.microsam_class_reference CASES.json

CASES.json is a list of objects with the keys `checkpoint`, `image` (.npy), `kind` (semantic or objects), `file` (the decoder or
classifier, made by the first case that names it), `result` (.npz, written), and optionally `tile_shape` and `halo`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch
from micro_sam import util
from micro_sam.automatic_segmentation import automatic_instance_segmentation, get_predictor_and_segmenter
from micro_sam.instance_segmentation import DecoderAdapter, get_unetr
from micro_sam.object_classification import compute_object_features
from sklearn.ensemble import RandomForestClassifier

from tests.support.microsam_small import use_small_networks

CLASSES = 6


def describe(case: dict[str, Any]) -> dict[str, np.ndarray]:
    """Labels of a case, and votes (objects, classes) of each object's pixels."""
    tiles = [tuple(case[key]) if case.get(key) else None for key in ("tile_shape", "halo")]
    predictor, segmenter = get_predictor_and_segmenter(
        "vit_b", checkpoint=case["checkpoint"], segmentation_mode="ais", is_tiled=tiles[0] is not None
    )
    image = np.load(case["image"])
    one_thread = {"n_threads": 1} if tiles[0] else {}
    labels = automatic_instance_segmentation(
        predictor, segmenter, image, ndim=2, tile_shape=tiles[0], halo=tiles[1], verbose=False, **one_thread
    )
    embeddings = util.precompute_image_embeddings(
        predictor, image, ndim=2, tile_shape=tiles[0], halo=tiles[1], verbose=False
    )
    ids = np.unique(labels)[1:]
    if case["kind"] == "objects":
        return {"labels": labels, "votes": vote_by_forest(case["file"], embeddings, labels, ids)}
    with torch.no_grad():
        classes = semantic(case["file"], predictor, embeddings, image.shape[:2], *tiles)
    return {"labels": labels, "votes": np.array([np.bincount(classes[labels == i], minlength=CLASSES) for i in ids])}


def semantic(file: str, predictor: Any, embeddings: Any, shape: Any, tile_shape: Any, halo: Any) -> np.ndarray:
    """(y, x) class of each pixel, as patho-sam finds it: the highest score, on each tile without its halo."""
    if not Path(file).exists():
        make_decoder(file, predictor, embeddings)
    decoder = DecoderAdapter(get_unetr(predictor.model.image_encoder, torch.load(file), "cpu", out_channels=CLASSES))
    if tile_shape is None:
        predictor = util.set_precomputed(predictor, embeddings)
        return decoder(predictor.features, predictor.input_size, predictor.original_size).argmax(1)[0].numpy()
    classes = np.zeros(shape, int)
    tiling = util.Blocking([0, 0], shape, tile_shape)
    for tile in range(tiling.number_of_blocks):
        predictor = util.set_precomputed(predictor, embeddings, tile_id=tile)
        output = decoder(predictor.features, tuple(predictor.input_size), tuple(predictor.original_size))
        block = tiling.get_block_with_halo(tile, halo=list(halo))
        local, inner = (
            tuple(slice(begin, end) for begin, end in zip(part.begin, part.end, strict=True))
            for part in (block.inner_block_local, block.inner_block)
        )
        classes[inner] = output.argmax(1)[0].numpy()[local]
    return classes


def make_decoder(file: str, predictor: Any, embeddings: Any) -> None:
    """Save a random decoder of classes whose scores are shifted so that each class wins somewhere on this image."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        unetr = get_unetr(predictor.model.image_encoder, device="cpu", out_channels=CLASSES)
    scores: list[torch.Tensor] = []
    hook = unetr.out_conv.register_forward_hook(lambda _module, _inputs, output: scores.append(output))
    features = embeddings["features"]
    features = features if isinstance(features, np.ndarray) else features["0"][:]
    DecoderAdapter(unetr)._forward_impl(torch.as_tensor(features))
    hook.remove()
    center, spread = (function(scores[0], (0, 2, 3)) for function in (torch.mean, torch.std))
    # The classes' scores have one mean and spread; background gets a bit more, so that it wins some objects.
    unetr.out_conv.weight.mul_((1 / spread)[:, None, None, None])
    unetr.out_conv.bias.sub_(center).div_(spread)
    unetr.out_conv.bias[0] += 0.3
    torch.save({key: value for key, value in unetr.state_dict().items() if not key.startswith("encoder")}, file)


def vote_by_forest(file: str, embeddings: Any, labels: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """(objects, 4) each object's probabilities times its pixels; 0 for a class that the forest never saw."""
    found, features = compute_object_features(embeddings, labels, verbose=False)
    if not Path(file).exists():
        # As the annotator trains it: on the objects that a person gave one of the classes 1, 2, 3.
        classes = np.random.default_rng(0).choice([1, 3], len(features))
        joblib.dump(RandomForestClassifier(10, random_state=0, n_jobs=2).fit(features, classes), file)
    forest = joblib.load(file)
    share = np.zeros((len(ids), 4))
    share[:, 0] = ~np.isin(ids, found)
    share[np.ix_(np.searchsorted(ids, found), forest.classes_)] = forest.predict_proba(features)
    return share * np.array([(labels == i).sum() for i in ids])[:, None]


if __name__ == "__main__":
    use_small_networks()
    for case in json.loads(Path(sys.argv[1]).read_text()):
        with torch.no_grad():
            np.savez(case["result"], **describe(case))
