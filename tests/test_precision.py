"""Training with products in bfloat16: close to float32, weights and gradients untouched, memory and roll-outs as narrow as the products."""

import pytest
import torch
from distilling import TRANSFORMER, synthetic_walks
from small import small_model

from distill.causal import CausalStage
from distill.optim import Muon, orthogonalise
from distill.parallel import Ranks
from distill.precision import training_dtype
from distill.recipe import RecipeError, load_recipe
from distill.stage_recipes import CausalRecipe
from distill.trainer import Deadline
from worldmodel.memory import MemoryConfig
from worldmodel.runtime import fast_bfloat16
from worldmodel.sampling import SamplerConfig

CPU = torch.device("cpu")


def stage(folder, dtype=None, steps=6):
    walks = synthetic_walks()
    recipe = CausalRecipe(
        transformer=TRANSFORMER, memory=MemoryConfig(window=2, horizon=20), sampler=SamplerConfig(2), steps=steps, curriculum=((0.0, 5, 2),)
    )
    return CausalStage(recipe, folder, walks, walks, small_model().autoencoder, CPU, ranks=Ranks(dtype=dtype))


def test_what_a_recipe_says():
    assert load_recipe("tiny").precision == "auto"
    assert training_dtype("weights", CPU) == torch.float32 and training_dtype("bfloat16", CPU) == torch.bfloat16
    assert (training_dtype("auto", CPU) == torch.bfloat16) == fast_bfloat16(CPU)
    with pytest.raises(RecipeError, match="precision"):
        load_recipe("tiny", ["precision=half"])


def test_losses_and_gradients_are_close_and_weights_stay_float32(tmp_path):
    plain, half = stage(tmp_path / "plain"), stage(tmp_path / "half", torch.bfloat16)
    for step in range(3):
        (want, _), (got, _) = plain.loss(step), half.loss(step)
        assert got.item() == pytest.approx(want.item(), rel=0.02) and got.item() != want.item()
        want.backward(), got.backward()
    pairs = zip(plain.model.parameters(), half.model.parameters(), strict=True)
    for a, b in ((a, b) for a, b in pairs if a.grad is not None and a.ndim == 2):
        assert b.dtype == b.grad.dtype == torch.float32
        assert (a.grad - b.grad).norm() < 0.15 * a.grad.norm() + 1e-6
    assert plain.model.new_memory(plain.recipe.memory, (4, 4)).keys.dtype == torch.float32
    assert half.model.new_memory(half.recipe.memory, (4, 4)).keys.dtype == torch.bfloat16


def test_it_trains_is_played_and_is_saved_as_ever(tmp_path):
    half = stage(tmp_path, torch.bfloat16)
    assert half.trainer.run(Deadline(1))  # the roll-outs of its sheet went through a memory in bfloat16
    model = half.finish()
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    muon = next(o for o in half.trainer.optimisers.all if isinstance(o, Muon))
    assert muon.dtype == torch.bfloat16


def test_muon_in_bfloat16_is_nearly_orthogonal_too():
    gradient = torch.randn(24, 40, generator=torch.Generator().manual_seed(0))
    plain, half = orthogonalise(gradient), orthogonalise(gradient, dtype=torch.bfloat16)
    assert half.dtype == torch.float32 and (plain - half).norm() < 0.03 * plain.norm()
    assert 0.6 < float(torch.linalg.svdvals(half).min()) and float(torch.linalg.svdvals(half).max()) < 1.3
