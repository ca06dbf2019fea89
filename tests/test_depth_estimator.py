"""Start pictures' depth from outside: pretrained estimators as transformers saves them, the fit into our units, and what it is worth."""

import io
import json
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.optimize import linprog
from serving import Client, running
from small import picture, small_model
from test_server import request
from transformers import (
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
    DPTConfig,
    DPTForDepthEstimation,
    GLPNConfig,
    GLPNForDepthEstimation,
)
from transformers.models.dpt.image_processing_pil_dpt import DPTImageProcessorPil
from transformers.models.glpn.image_processing_pil_glpn import GLPNImageProcessorPil

from distill.compare import identity
from distill.scenes import depth_maps, render, start_pose
from worldmodel import WorldModel
from worldmodel.cli import main
from worldmodel.depth import FAR
from worldmodel.depth_estimator import DepthEstimator, DepthEstimatorError, fitted
from worldmodel.images import ImageError, fit_depth_map, load_depth_map, load_start_image
from worldmodel.model import ModelError
from worldmodel.server import protocol as p
from worldmodel.server.app import create_app

FOCAL = 0.7


def depth_anything(kind: str = "relative", seed: int = 0) -> DepthAnythingForDepthEstimation:
    torch.manual_seed(seed)
    backbone = Dinov2Config(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, image_size=56, patch_size=14, out_indices=[1, 2, 3, 4],
        reshape_hidden_states=False,
    )  # fmt: skip
    return DepthAnythingForDepthEstimation(
        DepthAnythingConfig(
            backbone_config=backbone, patch_size=14, reassemble_hidden_size=16, neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8,
            head_hidden_size=8, depth_estimation_type=kind, max_depth=20,
        )  # fmt: skip
    ).eval()


def saved(folder, network):
    network.save_pretrained(folder)
    if network.config.model_type == "glpn":
        GLPNImageProcessorPil().save_pretrained(folder)
    else:
        DPTImageProcessorPil(size={"height": 56, "width": 56}, ensure_multiple_of=14, keep_aspect_ratio=True).save_pretrained(folder)
    return folder


def small_with_depth():
    """A small model that takes a picture's lower half for nearer"""
    model = small_model(view_focal=FOCAL)
    model.autoencoder.depth.forward = lambda pictures: torch.linspace(0.02, 0.2, 32)[:, None].expand(len(pictures), 1, 32, 32)
    return model


def by_hand(network, pixels: np.ndarray) -> torch.Tensor:
    """What the network tells of a picture of its own size, without an image processor"""
    x = (torch.from_numpy(pixels).float() / 255 - torch.tensor([0.5] * 3)) / torch.tensor([0.5] * 3)
    with torch.no_grad():
        return network(x.permute(2, 0, 1)[None]).predicted_depth[0]


@pytest.mark.parametrize("kind", ["relative", "metric"])
def test_it_tells_what_the_network_does_and_metres_the_other_way_round(tmp_path, kind):
    network = depth_anything(kind)
    estimator = DepthEstimator.from_pretrained(saved(tmp_path, network))
    pixels = picture(1, (56, 56))
    told, wanted = estimator(pixels), by_hand(network, pixels).numpy()
    assert told.shape == (56, 56) and told.std() > 0
    np.testing.assert_allclose(told, wanted if kind == "relative" else 1 / wanted, rtol=1e-4, atol=1e-6)
    estimator.network = None
    assert estimator(pixels.copy()) is told, "a picture is looked at once"
    with pytest.raises(AttributeError):
        estimator(picture(2, (56, 56)))


def test_kinds_of_network(tmp_path):
    torch.manual_seed(0)
    dpt = DPTForDepthEstimation(
        DPTConfig(
            hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32, image_size=56, patch_size=14,
            backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8, is_hybrid=False, readout_type="ignore",
            use_batch_norm_in_fusion_residual=False,
        )  # fmt: skip
    )
    glpn = GLPNForDepthEstimation(
        GLPNConfig(
            hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 1, 1], decoder_hidden_size=8, sr_ratios=[4, 2, 1, 1]
        )
    )
    assert DepthEstimator.from_pretrained(saved(tmp_path / "dpt", dpt)).near
    metres = DepthEstimator.from_pretrained(saved(tmp_path / "glpn", glpn))
    assert not metres.near and metres(picture(0, (64, 96))).shape == (64, 96)
    backbone = Dinov2Config(hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    backbone.save_pretrained(tmp_path / "other")
    with pytest.raises(DepthEstimatorError, match="is a dinov2; depth is estimated by depth_anything"):
        DepthEstimator.from_pretrained(tmp_path / "other")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DepthEstimatorError, match="empty cannot be loaded"):
        DepthEstimator.from_pretrained(tmp_path / "empty")


def test_the_fit_is_that_of_least_absolute_differences():
    rng = np.random.default_rng(0)
    truth = rng.uniform(0.01, 0.2, (12, 16))
    told = torch.from_numpy(truth * rng.uniform(0.9, 1.1, truth.shape))
    told[:3, :5] = 0.5  # where the network is badly wrong
    found = fitted(((truth - 0.03) * 40).astype(np.float32), told).numpy()
    x, y = truth.ravel(), told.numpy().ravel()
    unit = y + FAR
    n = len(x)  # minimise the sum of t over scale, offset and t, where -t <= (scale x + offset - y) / unit <= t
    rows = np.stack([x, np.ones(n)], 1) / unit[:, None]
    above = np.block([[rows, -np.eye(n)], [-rows, -np.eye(n)]])
    best = linprog([0, 0, *np.ones(n)], above, np.concatenate([y / unit, -y / unit]), bounds=[(None, None)] * 2 + [(0, None)] * n)
    cost = np.abs(found.ravel() - y) @ (1 / unit)
    assert cost < 1.01 * best.fun and np.abs(found / truth - 1).mean() < 0.03
    fine = truth.astype(np.float32).repeat(3, 0).repeat(3, 1)
    assert np.allclose(fit_depth_map(fine, truth.shape), truth)


def test_depth_that_says_nothing_or_the_contrary_is_left_out():
    told = torch.rand(8, 8) + 0.1
    assert fitted(np.full((8, 8), 3.0, np.float32), told) is told
    assert fitted(-told.numpy(), told) is told


def test_a_world_begins_with_it(tmp_path):
    model = small_with_depth()
    start, near = picture(3, (64, 64)), np.linspace(0, 1, 64, dtype=np.float32)[:, None].repeat(64, 1) ** 3
    plain, deep = model.start(start, seed=1), model.start(start, seed=1, depth=near)
    told = plain._history.start.inverse_depth[0, 0].float()
    wanted = fitted(fit_depth_map(near, told.shape), told)
    assert torch.allclose(deep._history.start.inverse_depth[0, 0].float(), wanted, rtol=2e-3, atol=1e-3)
    scaled = model.start(start, seed=1, depth=near * 7 - 3)
    frames = [np.concatenate([c.frames for c in w.stream("w*8 a*8")]) for w in (plain, deep, scaled)]
    assert not np.array_equal(frames[0], frames[1]) and np.array_equal(frames[1], frames[2]), "neither scale nor offset counts"
    deep.save(tmp_path / "deep.world")
    again = model.load_world(tmp_path / "deep.world")
    assert np.array_equal(again.step("w").frames, deep.step("w").frames)
    for bad in (np.zeros(5), np.full((4, 4), np.nan), "far"):
        with pytest.raises(DepthEstimatorError, match="Depth is an array"):
            model.start(start, depth=bad)
    with pytest.raises(ModelError, match="give one"):
        model.start(None, "a place", depth=near)
    with pytest.raises(ModelError, match="no camera views"):
        small_model().start(start, depth=near)


def test_a_depth_map_beside_the_picture(tmp_path):
    model, near = small_with_depth(), np.linspace(0, 1, 80)[:, None].repeat(100, 1) ** 2
    near[:, :10] = near[:, 90:] = 1  # what is cut away
    Image.fromarray(picture(5)).save(tmp_path / "a.place.png")
    told = model.start(tmp_path / "a.place.png")._history.start.inverse_depth
    for grey in (np.uint8(255 * near), np.uint16(65535 * near)):
        Image.fromarray(grey).save(tmp_path / "a.place.depth.png")
        found = model.start(str(tmp_path / "a.place.png"))._history.start.inverse_depth
        given = model.start(tmp_path / "a.place.png", depth=near)._history.start.inverse_depth
        cut = model.start(picture(5)[:, 10:90], depth=near[:, 10:90])._history.start.inverse_depth
        assert torch.equal(given, cut) and torch.allclose(found, given, rtol=0.02, atol=1e-3) and not torch.allclose(found, told, rtol=0.02)
    Image.fromarray(picture(5)).save(tmp_path / "a.place.depth.png")
    with pytest.raises(ImageError, match="a.place.depth.png has colours"):
        model.start(tmp_path / "a.place.png")
    (tmp_path / "a.place.depth.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match="a.place.depth.png is no PNG"):
        model.start(tmp_path / "a.place.png")
    assert small_model().start(tmp_path / "a.place.png").first_frame.shape == (64, 64, 3), "a model without views does not ask"


def test_the_gallery_knows_its_depth():
    """A start picture's map is of that picture: where the network is sure, the two agree"""
    model = WorldModel.from_pretrained("tiny")
    assert all(load_depth_map(place.image_path).shape == (64, 64) for place in model.gallery)
    for place in model.gallery[::3]:
        told = model.start(load_start_image(place.image_path, model.size), history=0)._history.start.inverse_depth.flatten().float()
        known = model.start(place.image_path, history=0)._history.start.inverse_depth.flatten().float()
        apart = ((known + FAR).log() - (told + FAR).log()).abs()
        assert 0.001 < apart.mean() < 0.15 and apart.median() < 0.05, place.name


def test_a_model_with_an_estimator(tmp_path, capsys):
    saved(tmp_path / "depth", depth_anything())
    small_model(view_focal=FOCAL).save_pretrained(tmp_path / "model")
    model = WorldModel.from_pretrained(tmp_path / "model", depth=tmp_path / "depth")
    start = picture(4, (64, 64))
    told = model.with_steps(1).start(start)._history.start.inverse_depth
    plain = WorldModel.from_pretrained(tmp_path / "model")
    assert identity(model) != identity(plain), "what was measured with one is not taken for what the other shows"
    by_array = plain.start(start, depth=model.depth_estimator(start))
    assert torch.equal(told, by_array._history.start.inverse_depth)
    small = small_model(view_focal=FOCAL)
    small.depth_estimator = model.depth_estimator
    assert small.start(None, "a place").first_frame.shape == start.shape, "what is made from a prompt has nothing to estimate"
    Image.fromarray(start).save(tmp_path / "start.png")
    arguments = ["generate", "--model", str(tmp_path / "model"), "--image", str(tmp_path / "start.png"), "--out", str(tmp_path / "x.mp4")]
    assert main([*arguments, "--depth", str(tmp_path / "depth"), "--script", "w*4"]) == 0
    assert main([*arguments, "--depth", str(tmp_path / "nowhere")]) == 2 and "depth estimator" in capsys.readouterr().err
    small_model().save_pretrained(tmp_path / "blind")
    with pytest.raises(ModelError, match="no camera views"):
        WorldModel.from_pretrained(tmp_path / "blind", depth=tmp_path / "depth")


def test_better_depth_is_worth_decibels_when_walking():
    """True depth, its scale and offset taken away, in a scene that no weights have seen"""
    seed, start, script = 703, 11, "w*32"
    model, clip = WorldModel.from_pretrained("tiny"), render(703, script, start=start, size=(256, 256))
    near = 5 / depth_maps(seed, start_pose(seed, start)[None], (256, 256))[0] + 2
    loss = []
    for depth in (None, near):
        world = model.start(clip.frames[0], clip.caption, seed=0, depth=depth)
        seen = np.concatenate([chunk.frames for chunk in world.stream(script)]).astype(np.float64)
        loss.append(((seen - clip.frames[1 : 1 + len(seen)]) ** 2).mean((1, 2, 3)))
    gain = (10 * np.log10(loss[0] / loss[1])).mean()
    assert gain > 0.3


def test_a_visitors_upload_is_estimated_off_the_engines_thread(tmp_path):
    """With the real small model behind the server; the estimator notes in which thread it works"""
    model, threads = small_with_depth(), []
    estimator = DepthEstimator.from_pretrained(saved(tmp_path, depth_anything()))
    model.depth_estimator = lambda pixels: threads.append(threading.current_thread().name) or estimator(pixels)
    begun = []
    start = model.start
    model.start = lambda *args, **kwargs: begun.append((threading.current_thread().name, kwargs.get("depth"))) or start(*args, **kwargs)
    with running(create_app(model)) as host, Client(host, hello=False) as client:
        file = io.BytesIO()
        Image.fromarray(picture(6, (64, 64))).save(file, "PNG")
        name = json.loads(request(host, "POST", "/api/v1/images", file.getvalue())[1])["id"]
        client.send(p.Hello(proto=p.PROTOCOL, image=name))
        client.expect(p.Ready)
        client.hold("KeyW")
        client.play(4, timeout=20)
    (thread, depth), *_ = begun
    assert threads and set(threads).isdisjoint({thread}) and np.array_equal(depth, estimator(picture(6, (64, 64))))
