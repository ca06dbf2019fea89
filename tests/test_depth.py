"""Depth from a picture: pictures and depth that belong together, a loss against a plain computation, and a network that learns it."""

import numpy as np
import pytest
import torch

from distill.depth import DepthStage, depth_loss, load_pictures, pictures_of_scene, render_pictures
from distill.scenes import RESERVED_SEED
from distill.stage_recipes import DepthRecipe
from distill.trainer import Deadline
from worldmodel.autoencoder import TinyAutoencoder
from worldmodel.depth import FAR, PictureDepth

SIZE = (32, 48)


def test_pictures_of_a_scene():
    frames, depth = pictures_of_scene(2, 2, SIZE)
    assert frames.shape[1:] == (*SIZE, 3) and frames.dtype == np.uint8
    assert depth.shape == (len(frames), 16, 24) and np.isfinite(depth).all() and depth.max() > 0
    again, _ = pictures_of_scene(2, 1, SIZE)
    assert np.array_equal(again, frames[: len(again)])  # more walks begin with those of fewer
    with pytest.raises(ValueError, match="reserved"):
        pictures_of_scene(RESERVED_SEED, 1, SIZE)


def test_the_loss_is_that_of_loops():
    found, truth = torch.randn(2, 6, 7, dtype=torch.float64), torch.randn(2, 6, 7, dtype=torch.float64)
    loss, error = depth_loss(found, truth)
    e = (found - truth).numpy()
    steps = 0.0
    for k in (1, 4):
        steps += np.mean([abs(e[n, i, j + k] - e[n, i, j]) for n in range(2) for i in range(6) for j in range(7 - k)])
        steps += np.mean([abs(e[n, i + k, j] - e[n, i, j]) for n in range(2) for i in range(6 - k) for j in range(7)])
    assert float(error) == pytest.approx(np.abs(e).mean()) and float(loss) == pytest.approx(np.abs(e).mean() + 0.25 * steps)


def test_any_size_of_picture():
    net = PictureDepth((8, 8, 16))
    assert net(torch.randn(2, 3, 32, 48)).shape == (2, 1, 16, 24)
    flat = PictureDepth((8, 8, 8))
    with torch.no_grad():
        for p in flat.edges[-1].parameters():
            p.zero_()
        flat.edges[-1].bias.fill_(float(np.log(FAR)))
        assert flat(torch.randn(1, 3, 32, 32)).abs().max() < 1e-8  # the sky


def test_it_learns_and_the_autoencoder_keeps_the_rest(tmp_path):
    recipe = DepthRecipe(seeds="30-39", walks=1, widths=(16, 16, 16), steps=40, batch=8, workers=1)
    torch.manual_seed(0)
    autoencoder = TinyAutoencoder(96, (8, 8), 8, 0)
    render_pictures(recipe, tmp_path / "pictures", (32, 32))
    before = sorted((p, p.stat().st_mtime_ns) for p in (tmp_path / "pictures").iterdir())
    render_pictures(recipe, tmp_path / "pictures", (32, 32))
    assert before == sorted((p, p.stat().st_mtime_ns) for p in (tmp_path / "pictures").iterdir()) and len(before) == 10
    trained, held_out = load_pictures(recipe, tmp_path / "pictures")
    autoencoder.init_linear_code((trained[0].movedim(-1, 1).float() / 127.5 - 1).repeat_interleave(4, 1))
    stage = DepthStage(recipe, tmp_path / "run", autoencoder, trained, held_out, torch.device("cpu"))
    start = stage.sample(tmp_path)["error"]
    assert stage.trainer.run(Deadline(3))
    made = stage.finish()
    assert stage.sample(tmp_path)["error"] < 0.8 * start and list(tmp_path.glob("run/sheet-*.png"))
    picture = torch.rand(1, 3, 32, 32) * 2 - 1
    with pytest.raises(ValueError, match="knows no depth"):
        autoencoder.inverse_depth(picture)
    assert made.inverse_depth(picture).shape == (1, 1, 16, 16)
    assert all(torch.equal(v, made.state_dict()[k]) for k, v in autoencoder.state_dict().items())
    made.save_pretrained(tmp_path / "model")
    loaded = TinyAutoencoder.from_pretrained(tmp_path / "model")
    assert torch.equal(loaded.inverse_depth(picture), made.inverse_depth(picture))
