"""Depth from a picture: pictures and depth that belong together, a loss against a plain computation, and a network that learns it."""

import numpy as np
import pytest
import torch

from distill.depth import DepthStage, Pictures, depth_loss, pictures_of_scene, train_depth
from distill.scenes import RESERVED_SEED
from distill.stage_recipes import DepthRecipe
from distill.trainer import Deadline
from worldmodel.autoencoder import TinyAutoencoder
from worldmodel.depth import FAR, PictureDepth

SIZE = (32, 48)


def test_pictures_of_a_scene():
    frames, depth, textured = pictures_of_scene(2, 2, SIZE)
    assert frames.shape[1:] == (*SIZE, 3) and frames.dtype == np.uint8
    assert depth.shape == (len(frames), 16, 24) and np.isfinite(depth).all() and depth.max() > 0
    again, _, _ = pictures_of_scene(2, 1, SIZE)
    assert np.array_equal(again, frames[: len(again)]) and not textured.any()  # more walks begin with those of fewer
    painted, same, textured = pictures_of_scene(2, 1, SIZE, textured=1.0)
    assert textured.all() and np.array_equal(same, depth[: len(same)]) and not np.array_equal(painted, again)
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


def test_more_blocks_begin_as_fewer_do():
    torch.manual_seed(0)
    few, many, picture = PictureDepth((8, 8, 16)), PictureDepth((8, 8, 16), (2, 1, 3, 2)), torch.randn(2, 3, 32, 32)
    many.begin_as(few)
    assert torch.allclose(many(picture), few(picture), atol=1e-6) and len(many.state_dict()) > len(few.state_dict())
    with pytest.raises(ValueError, match="one number more than its widths"):
        PictureDepth((8, 8, 16), (1, 1, 1))


def test_it_learns_and_the_autoencoder_keeps_the_rest(tmp_path):
    recipe = DepthRecipe(seeds="30-39", walks=2, textured=0.3, widths=(16, 16, 16), blocks=(1, 1, 1, 1), steps=40, batch=8, workers=1)
    torch.manual_seed(0)
    autoencoder = TinyAutoencoder(96, (8, 8), 8, 0)
    pictures = Pictures.averaged(recipe, tmp_path, (32, 32))
    pictures.render(1)
    before = sorted((p, p.stat().st_mtime_ns) for p in (tmp_path / "pictures").iterdir())
    pictures.render(1)
    assert before == sorted((p, p.stat().st_mtime_ns) for p in (tmp_path / "pictures").iterdir()) and len(before) == 10
    trained, held_out = pictures.load()
    autoencoder.init_linear_code((trained[0].movedim(-1, 1).float() / 127.5 - 1).repeat_interleave(4, 1))
    stage = DepthStage(recipe, tmp_path / "run", autoencoder, trained, held_out, torch.device("cpu"))
    start = stage.sample(tmp_path)["error"]
    assert 0 < trained[2].float().mean() < 1
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


def test_edges_are_learned_after_the_rest(tmp_path):
    sizes = dict(seeds="30-59", walks=1, widths=(16, 16, 16), pool=2, batch=8, workers=1)
    recipe = DepthRecipe(**sizes, steps=12, finer=8, finer_every=2, finer_walks=1, finer_steps=40)
    torch.manual_seed(0)
    autoencoder, deadline = TinyAutoencoder(96, (), 8, 0), Deadline(3)
    coarse = train_depth(DepthRecipe(**sizes, steps=12), tmp_path, autoencoder, (64, 64), deadline, torch.device("cpu")).finish()
    stage = train_depth(recipe, tmp_path, autoencoder, (64, 64), deadline, torch.device("cpu"))
    made, picture = stage.finish(), torch.rand(1, 3, 64, 64) * 2 - 1
    assert coarse.inverse_depth(picture).shape == (1, 1, 16, 16) and made.inverse_depth(picture).shape == (1, 1, 32, 32)
    assert all(torch.equal(v, made.state_dict()[k]) for k, v in coarse.state_dict().items())
    assert torch.equal(made.depth.at_pool(2)(picture), coarse.inverse_depth(picture))
    names = sorted(p.stem for p in (tmp_path / "pictures-whole").iterdir())
    assert len(stage.held_out[0]) < len(stage.trained[0]) and names[10] == "000050"
    unlearned = DepthStage(recipe, tmp_path / "new", coarse, stage.trained, stage.held_out, torch.device("cpu"), finer=True)
    assert stage.sample(tmp_path)["error"] < unlearned.sample(tmp_path)["error"]
