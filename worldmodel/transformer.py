"""The causal world transformer: Wan's video transformer, made causal, with RELIC's actions, poses and memory.

Parameter names are those of diffusers' `WanTransformer3DModel`, so Wan checkpoints load as they are; RELIC's parts
(arXiv 2512.04040, section 3.3) come on top and start at zero, so a fresh model equals Wan:

- `action_encoder`: the 13 magnitudes of the 4 video frames of a latent frame, folded and put through an MLP; each block
  adds its own projection to the tokens right after self-attention;
- `pose_encoder`: the absolute pose of those frames, the same way; each block adds it to queries and keys, never to values.

Shapes: B batch, T latent frames, N = h*w tokens per latent frame, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from diffusers import CacheMixin, ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import FromOriginalModelMixin, PeftAdapterMixin
from diffusers.models.attention import FeedForward
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from diffusers.models.normalization import FP32LayerNorm
from diffusers.models.transformers.transformer_wan import WanTimeTextImageEmbedding
from torch import Tensor, nn

from worldmodel.actions import NUM_ACTIONS
from worldmodel.camera import POSE_CODE_DIM
from worldmodel.camera_view import CameraView, ViewBlend
from worldmodel.memories import new_memory
from worldmodel.memory import CompressedMemory, MemoryConfig, MemoryTeam, TrainingLayout, token_positions
from worldmodel.projection import pixel_rays, rotation_and_position
from worldmodel.rotary import RotaryEmbedding, rotate

if TYPE_CHECKING:
    from worldmodel.head_parallel import HeadRanks


def fold_frames(x: Tensor, stride: int = 4) -> Tensor:
    """Per-frame vectors [B, 1+4k, d] -> per-latent [B, 1+k, 4d]; the first frame stands for a whole latent frame."""
    padded = torch.cat([x[:, :1].expand(-1, stride - 1, -1), x], dim=1)
    return padded.unflatten(1, (-1, stride)).flatten(2)


def token_rays(poses: Tensor, grid: tuple[int, int], focal: float) -> Tensor:
    """Rays through the tokens' centres in Pluecker coordinates, unit direction and moment: [B, T*N, 6S] of pose codes [B, T, S, 9].

    `focal` is focal length over picture width, pixels are square; moments are in the codes' unit of length.
    """
    turn, origin = rotation_and_position(poses)
    along = F.normalize(pixel_rays(grid, focal, str(poses.device), poses.dtype), dim=-1) @ turn.transpose(-1, -2)  # B T S N 3
    moment = torch.linalg.cross(origin.unsqueeze(-2).expand_as(along), along)
    return torch.cat([along, moment], -1).transpose(2, 3).flatten(3).flatten(1, 2)


@dataclass
class Visibility:
    """What the queries of one forward pass may look at besides each other.

    Training: `layout` (which full and pooled latent frames of the same sequence). Inference: rotated keys and values of the
    memory with room behind them, or `each` sequence's own where memories differ. Neither: plain bidirectional attention, as in Wan.
    """

    layout: TrainingLayout | None = None
    pooled_turn: Tensor | None = None
    grid: tuple[int, int] = (0, 0)
    keys: Tensor | None = None  # [layers, B, heads, capacity, head_dim]
    values: Tensor | None = None
    filled: int = 0
    turn: Tensor | None = None  # complex [filled, head_dim/2], by which keys that are kept narrow have still to be turned
    each: tuple[Visibility, ...] = ()


class RMSNorm(nn.RMSNorm):
    """In the dtype of its input, so that it stays one operation where products of matrices are in half precision."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class Attention(nn.Module):
    """Multi-head attention with Wan's parameter names and RMS-normalised queries and keys."""

    def __init__(self, dim: int, heads: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.backend: AttentionBackendName | None = None  # the dispatcher's own choice (`runtime`)
        self.to_q = nn.Linear(dim, dim)
        self.to_k = nn.Linear(dim, dim)
        self.to_v = nn.Linear(dim, dim)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim), nn.Dropout(0.0)])
        self.norm_q = RMSNorm(dim, eps=eps)
        self.norm_k = RMSNorm(dim, eps=eps)

    @property
    def dtype(self) -> torch.dtype:
        """Of matrix products; the residual stream may be finer."""
        return self.to_q.weight.dtype

    def key_value(self, x: Tensor, pose: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
        """Keys (before RoPE) and values [B, L, heads, head_dim] of x [B, L, D]"""
        return self.norm_k(self.to_k(x) + pose).unflatten(2, (self.heads, -1)), self.to_v(x).unflatten(2, (self.heads, -1))

    def query(self, x: Tensor, pose: Tensor | float = 0.0) -> Tensor:
        return self.norm_q(self.to_q(x) + pose).unflatten(2, (self.heads, -1))

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Values [B, L, heads, head_dim] mixed by attention"""
        return dispatch_attention_fn(query, key, value, backend=self.backend).type_as(query)

    def project(self, mixed: Tensor) -> Tensor:
        """[B, L, heads, head_dim] -> [B, L, D]"""
        return self.to_out[0](mixed.flatten(2, 3))


class WorldTransformerBlock(nn.Module):
    """Self-attention, action, cross-attention, feed-forward."""

    def __init__(self, dim: int, ffn_dim: int, heads: int, cross_attn_norm: bool, eps: float, camera_dim: int) -> None:
        super().__init__()
        self.norm1 = FP32LayerNorm(dim, eps, elementwise_affine=False)
        self.attn1 = Attention(dim, heads, eps)
        self.attn2 = Attention(dim, heads, eps)
        self.norm2 = FP32LayerNorm(dim, eps, elementwise_affine=True) if cross_attn_norm else nn.Identity()
        self.ffn = FeedForward(dim, inner_dim=ffn_dim, activation_fn="gelu-approximate")
        self.norm3 = FP32LayerNorm(dim, eps, elementwise_affine=False)
        self.scale_shift_table = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)
        self.action_proj = nn.Linear(camera_dim, dim)
        self.pose_proj = nn.Linear(camera_dim, 2 * dim)
        self.ranks: HeadRanks | None = None  # processes that share the heads of self-attention (`head_parallel`)
        for layer in (self.action_proj, self.pose_proj):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self, x: Tensor, text: tuple[Tensor, Tensor], modulation: Tensor, turn: Tensor,
        action: Tensor, pose: Tensor, layer: int, seen: Visibility,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """x [B, L, D], modulation [B, 1 or T, 6, D], turn [L, head_dim/2], action [B, T, camera_dim], pose [B, T or L, camera_dim]
        -> x, and keys and values to remember"""
        query, key, value = self.before(x, modulation, pose)
        if self.ranks is not None:
            query, key, value = self.ranks.by_heads(query, key, value, frames=action.shape[1])
        mixed = self._attend(rotate(query, turn), rotate(key, turn), key, value, layer, seen)
        if self.ranks is not None:
            mixed = self.ranks.by_tokens(mixed, frames=action.shape[1])
        return self.after(x, mixed, text, modulation, action), key, value

    def before(self, x: Tensor, modulation: Tensor, pose: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys (both before RoPE) and values [B, L, heads, head_dim] of self-attention; the pose enters the first two only"""
        shift, scale = self._modulation(modulation)[:, :, :2].split(1, dim=2)
        h = self._modulated(self.norm1(x.float()), shift, scale, shift.shape[1])
        pose = self.pose_proj(pose.to(h.dtype)).repeat_interleave(x.shape[1] // pose.shape[1], dim=1)
        pose_q, pose_k = pose.chunk(2, dim=-1)
        return self.attn1.query(h, pose_q), *self.attn1.key_value(h, pose_k)

    def after(self, x: Tensor, mixed: Tensor, text: tuple[Tensor, Tensor], modulation: Tensor, action: Tensor) -> Tensor:
        """What follows self-attention, whose result `mixed` is [B, L, heads, head_dim]: action, cross-attention, feed-forward"""
        frames = action.shape[1]
        gate, shift, scale, ff_gate = self._modulation(modulation)[:, :, 2:].split(1, dim=2)

        def by_frame(y: Tensor) -> Tensor:
            return y.unflatten(1, (frames, -1))

        x = (by_frame(x.float()) + by_frame(self.attn1.project(mixed)) * gate).type_as(x)
        x = (x + self.action_proj(action.to(mixed.dtype)).unsqueeze(2)).flatten(1, 2)

        h = self.norm2(x.float()).to(mixed.dtype)
        x = x + self.attn2.project(self.attn2.attend(self.attn2.query(h), *text))

        h = self._modulated(self.norm3(x.float()), shift, scale, frames)
        return (by_frame(x.float()) + by_frame(self.ffn(h)).float() * ff_gate).flatten(1, 2).type_as(x)

    def _modulation(self, modulation: Tensor) -> Tensor:
        """Shift, scale and gate of self-attention and of the feed-forward: float32 [B, 1 or T, 6, D]"""
        return self.scale_shift_table.unsqueeze(0) + modulation.float()

    def _modulated(self, y: Tensor, shift: Tensor, scale: Tensor, frames: int) -> Tensor:
        """y [B, L, D] scaled and shifted by latent frame, in the dtype of matrix products"""
        return (y.unflatten(1, (frames, -1)) * (1 + scale) + shift).flatten(1, 2).to(self.attn1.dtype)

    def _attend(self, query: Tensor, rotated: Tensor, key: Tensor, value: Tensor, layer: int, seen: Visibility) -> Tensor:
        """Self-attention. Of a whole sequence, each latent frame looks at those that it sees; sequences whose memories differ in length
        attend one by one; all else is done together."""
        if seen.layout is not None:
            return self._attend_by_frames(query, rotated, key, value, seen)
        if not seen.each:
            return self.attn1.attend(query, *self._look(rotated, key, value, layer, seen))
        rows = []
        for row, own in zip(zip(*(x.split(1) for x in (query, rotated, key, value)), strict=True), seen.each, strict=True):
            rows.append(self.attn1.attend(row[0], *self._look(*row[1:], layer, own)))
        return torch.cat(rows)

    def _attend_by_frames(self, query: Tensor, rotated: Tensor, key: Tensor, value: Tensor, seen: Visibility) -> Tensor:
        """Attention [B, L, heads, head_dim] of a whole sequence as `seen.layout` says"""
        layout = seen.layout
        pooled = layout.pool(key, seen.grid)
        keys = torch.cat([rotated, rotate(pooled, seen.pooled_turn)], 1).split(layout.sizes, 1)
        values = torch.cat([value, layout.pool(value, seen.grid)], 1).split(layout.sizes, 1)
        parts = query.split([tokens for tokens, _ in layout.reads], 1)
        return torch.cat(
            [
                self.attn1.attend(part, torch.cat([keys[i] for i in frames], 1), torch.cat([values[i] for i in frames], 1))
                for part, (_, frames) in zip(parts, layout.reads, strict=True)
            ],
            1,
        )

    @staticmethod
    def _look(rotated: Tensor, key: Tensor, value: Tensor, layer: int, seen: Visibility) -> tuple[Tensor, Tensor]:
        """All keys and values of this pass."""
        if seen.turn is not None:
            past_keys, past_values = (x[layer, :, :, : seen.filled].transpose(1, 2).to(value.dtype) for x in (seen.keys, seen.values))
            return torch.cat([rotate(past_keys, seen.turn), rotated], 1), torch.cat([past_values, value], 1)
        if seen.keys is not None and torch.is_grad_enabled():  # the memory is a constant, and the graph keeps nothing of its buffers
            past_keys, past_values = (buffer[layer, :, :, : seen.filled].detach() for buffer in (seen.keys, seen.values))
            keys = torch.cat([past_keys, rotated.transpose(1, 2)], dim=2)
            values = torch.cat([past_values, value.transpose(1, 2)], dim=2)
            return keys.transpose(1, 2), values.transpose(1, 2)
        if seen.keys is not None:
            end = seen.filled + key.shape[1]
            keys, values = seen.keys[layer], seen.values[layer]
            keys[:, :, seen.filled : end] = rotated.transpose(1, 2)
            values[:, :, seen.filled : end] = value.transpose(1, 2)
            return keys[:, :, :end].transpose(1, 2), values[:, :, :end].transpose(1, 2)
        return rotated, value


class CausalWorldTransformer(ModelMixin, ConfigMixin, PeftAdapterMixin, FromOriginalModelMixin, CacheMixin):
    """One class for every size. Predicts velocity (noise - clean) as Wan does, or the clean latents (``"sample"``).

    Args are Wan's, and: `camera_dim`, the width of the action and pose codes; `action_dim`, magnitudes per video frame;
    `pose_dim`, numbers per pose (`camera.pose_code`); `pose_scale`, by which translations in steps are multiplied;
    `temporal_stride`, video frames per latent frame; `rope_theta`; `rope_original_latents` and `rope_extension`, the length in
    latent frames that the weights were first trained on and by how much YaRN extends it (0 and 1: not at all); `view_focal`,
    focal length over width of the pictures trained on, for models that are shown `view_pictures` of the remembered pictures from
    where the camera goes next (`camera_view`; 0: not); `ray_focal`, the same focal length for models whose pose code is told each token's
    rays as well (0: not, as in RELIC).
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["WorldTransformerBlock"]
    _repeated_blocks = ["WorldTransformerBlock"]
    _keep_in_fp32_modules = ["time_embedder", "scale_shift_table", "norm1", "norm2", "norm3"]
    _skip_layerwise_casting_patterns = ["patch_embedding", "condition_embedder", "norm"]

    @register_to_config
    def __init__(
        self,
        patch_size: tuple[int, int, int] = (1, 2, 2),
        num_attention_heads: int = 40,
        attention_head_dim: int = 128,
        in_channels: int = 16,
        out_channels: int = 16,
        text_dim: int = 4096,
        freq_dim: int = 256,
        ffn_dim: int = 13824,
        num_layers: int = 40,
        cross_attn_norm: bool = True,
        eps: float = 1e-6,
        camera_dim: int = 256,
        action_dim: int = NUM_ACTIONS,
        pose_dim: int = POSE_CODE_DIM,
        pose_scale: float = 1 / 16,
        temporal_stride: int = 4,
        rope_theta: float = 10000.0,
        rope_original_latents: int = 0,
        rope_extension: float = 1.0,
        prediction_type: str = "velocity",
        view_focal: float = 0.0,
        view_pictures: int = 1,
        ray_focal: float = 0.0,
    ) -> None:
        super().__init__()
        if patch_size[0] != 1:
            raise ValueError(f"A patch spans one latent frame, so that time stays causal; got patch_size={tuple(patch_size)}.")
        if prediction_type not in ("velocity", "sample"):
            raise ValueError(f"prediction_type is 'velocity' or 'sample', got {prediction_type!r}.")
        if view_focal and prediction_type != "sample":
            raise ValueError("view_focal needs prediction_type='sample'.")
        dim = num_attention_heads * attention_head_dim
        self.rope = RotaryEmbedding(attention_head_dim, rope_theta, rope_original_latents, rope_extension)
        self.patch_embedding = nn.Conv3d(in_channels, dim, kernel_size=tuple(patch_size), stride=tuple(patch_size))
        self.condition_embedder = WanTimeTextImageEmbedding(dim, freq_dim, dim * 6, text_dim)
        self.action_encoder = nn.Sequential(
            nn.Linear(action_dim * temporal_stride, camera_dim), nn.SiLU(), nn.Linear(camera_dim, camera_dim)
        )
        self.pose_encoder = nn.Sequential(nn.Linear(pose_dim * temporal_stride, camera_dim), nn.SiLU(), nn.Linear(camera_dim, camera_dim))
        self.ray_encoder = nn.Linear(6 * temporal_stride, camera_dim) if ray_focal else None
        if ray_focal:
            nn.init.zeros_(self.ray_encoder.weight)
            nn.init.zeros_(self.ray_encoder.bias)
        self.blocks = nn.ModuleList(
            WorldTransformerBlock(dim, ffn_dim, num_attention_heads, cross_attn_norm, eps, camera_dim) for _ in range(num_layers)
        )
        self.norm_out = FP32LayerNorm(dim, eps, elementwise_affine=False)
        self.proj_out = nn.Linear(dim, out_channels * patch_size[1] * patch_size[2])
        self.scale_shift_table = nn.Parameter(torch.randn(1, 2, dim) / dim**0.5)
        self.view_blend = ViewBlend(dim, out_channels, tuple(patch_size[1:])) if view_focal else None
        self.gradient_checkpointing = False
        self.compute_dtype: torch.dtype | None = None  # of matrix products where it is not that of the weights (`distill.parallel`)
        self.memory_dtype: torch.dtype | None = None  # in which a memory keeps keys and values, if not that of matrix products
        self.ranks: HeadRanks | None = None
        self._turned: tuple[tuple, Tensor] | None = None  # what `_query_turn` gave last, and what for

    # -- inputs that do not change from step to step -----------------------------------------------------------------------
    def encode_text(self, embeddings: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of the cross-attention of each block, of prompt embeddings [B, L, text_dim]"""
        text = self.condition_embedder.text_embedder(embeddings)
        text = text.to(self.compute_dtype or text.dtype)
        return [block.attn2.key_value(text) for block in self.blocks]

    def encode_camera(self, actions: Tensor, poses: Tensor) -> tuple[Tensor, Tensor]:
        """Action and pose codes [B, T, camera_dim] of per-frame actions [B, 4T or 4T-3, 13] and pose codes [.., 9].

        A clip that begins with its first frame has 1 + 4k frames; a chunk from its middle has 4t. With `ray_focal` the poses themselves,
        scaled and folded, follow the pose code, since only `forward` knows the tokens that rays go through.
        """
        scale = torch.ones(self.config.pose_dim, device=poses.device, dtype=poses.dtype)
        scale[:3] = self.config.pose_scale
        stride = self.config.temporal_stride
        folded = []
        for x in (actions, poses * scale):
            folded.append(x.unflatten(1, (-1, stride)).flatten(2) if x.shape[1] % stride == 0 else fold_frames(x, stride))
        pose = self.pose_encoder(folded[1])
        return self.action_encoder(folded[0]), pose if self.ray_encoder is None else torch.cat([pose, folded[1].to(pose)], -1)

    def set_rope_extension(self, extension: float, original_latents: int | None = None) -> CausalWorldTransformer:
        """Extend time `extension` times beyond `original_latents` (default: the config's) by YaRN; returns the model itself.

        Saved with the config. A memory made before keeps keys turned by the old embedding: make a new one.
        """
        cfg = self.config
        original = cfg.rope_original_latents if original_latents is None else original_latents
        if (original, extension) != (cfg.rope_original_latents, cfg.rope_extension):
            self.rope = RotaryEmbedding(cfg.attention_head_dim, cfg.rope_theta, original, extension)
            changed = {"rope_original_latents": original, "rope_extension": extension}
            defaults = [k for k in cfg.get("_use_default_values", []) if k not in changed]  # else `from_config` would drop them
            self.register_to_config(**changed, _use_default_values=defaults)
        return self

    def grid(self, latent_size: tuple[int, int]) -> tuple[int, int]:
        return latent_size[0] // self.config.patch_size[1], latent_size[1] // self.config.patch_size[2]

    def new_memory(self, config: MemoryConfig, latent_size: tuple[int, int], batch: int = 1, chunk: int = 1) -> CompressedMemory:
        """The memory that `config.policy` names."""
        heads = self.config.num_attention_heads // (self.ranks.size if self.ranks else 1)
        dtype = self.memory_dtype or self.compute_dtype or self.dtype
        return new_memory(
            config, len(self.blocks), heads, self.config.attention_head_dim, self.grid(latent_size),
            batch=batch, chunk=chunk, device=self.device, dtype=dtype, focal=self.config.view_focal,
        )  # fmt: skip

    # -- forward -----------------------------------------------------------------------------------------------------------
    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        text: Tensor | list[tuple[Tensor, Tensor]],
        actions: Tensor | None = None,
        poses: Tensor | None = None,
        *,
        camera: tuple[Tensor, Tensor] | None = None,
        memory: CompressedMemory | MemoryTeam | None = None,
        layout: TrainingLayout | None = None,
        view: CameraView | None = None,
        write: bool = False,
        keep: bool = False,
    ) -> Tensor:
        """Prediction [B, C, T, H, W] for noisy latents of the same shape.

        Args:
            timestep: [B] or per latent frame [B, T], in 0..1000 (0: clean).
            text: prompt embeddings [B, L, text_dim], or `encode_text` of them.
            actions, poses: per video frame [B, F, 13] and [B, F, 9]; or `camera`, which is `encode_camera` of them.
            memory: the latents are the next chunk after what is in the memory; `write` stores their keys and values, `keep` puts them
                there without counting them before `memory.commit`. A `MemoryTeam` is one memory for each sequence of the batch.
            layout: the latents are a whole sequence, each seeing what this says (`memory.training_layout`).
            With neither, attention is bidirectional, as in Wan.
            view: of the last latent frames of each sequence, [B * how many] views; needs `view_focal`.
        """
        batch, _, frames, height, width = hidden_states.shape
        grid = self.grid((height, width))
        turn = self._query_turn(frames, grid, memory, layout, hidden_states.device)
        seen = self._visibility(memory, layout, grid, hidden_states.device)

        x = self.patch_embedding(hidden_states).flatten(2).transpose(1, 2).contiguous()  # B T*N D
        if view is not None:
            shown = self.view_blend.tokens(view).unflatten(0, (batch, -1)).flatten(1, 2)
            x = x + F.pad(shown, (0, 0, x.shape[1] - shown.shape[1], 0))
        if camera is None:
            if actions is None or poses is None:
                zero = hidden_states.new_zeros(batch, frames, self.config.camera_dim)
                camera = (zero, zero)
            else:
                camera = self.encode_camera(actions, poses)
        if self.ray_encoder is not None:
            camera = (camera[0], self._with_rays(camera[1], grid))
        if isinstance(text, Tensor):
            text = self.encode_text(text)
        temb, modulation = self._time(timestep, x.dtype)  # [B, 1 or T, D], [B, 1 or T, 6, D]

        if self.ranks is not None:
            x = self.ranks.split(x, frames)
            if self.ray_encoder is not None:
                camera = (camera[0], self.ranks.split(camera[1], frames))
        for layer, block in enumerate(self.blocks):
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                x, key, value = self._gradient_checkpointing_func(block, x, text[layer], modulation, turn, *camera, layer, seen)
            else:
                x, key, value = block(x, text[layer], modulation, turn, *camera, layer, seen)
            if write or keep:
                memory.put(layer, key, value)
        if write:
            memory.commit(frames)
        if self.ranks is not None:
            x = self.ranks.join(x, frames)

        shift, scale = (self.scale_shift_table.unsqueeze(0) + temb.unsqueeze(2)).chunk(2, dim=2)
        x = self.norm_out(x.float()).unflatten(1, (frames, -1)) * (1 + scale) + shift
        x = x.flatten(1, 2).type_as(hidden_states)
        out = self.proj_out(x)
        if view is not None:
            last = slice(x.shape[1] - shown.shape[1], None)
            parts = (y[:, last].unflatten(1, (-1, grid[0] * grid[1])).flatten(0, 1) for y in (x, out))
            out = torch.cat([out[:, : last.start], self.view_blend(*parts, view).unflatten(0, (batch, -1)).flatten(1, 2)], dim=1)
        _, ph, pw = self.config.patch_size
        x = out.unflatten(2, (ph, pw, -1)).unflatten(1, (frames, *grid))  # B T h w ph pw C
        return x.permute(0, 6, 1, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)

    def _with_rays(self, pose: Tensor, grid: tuple[int, int]) -> Tensor:
        """Pose codes [B, T*N, camera_dim] token by token, of what `encode_camera` says (nothing is known of rays where no pose is given)"""
        code, folded = pose.split([self.config.camera_dim, pose.shape[-1] - self.config.camera_dim], -1)
        code = code.repeat_interleave(grid[0] * grid[1], dim=1)
        if not folded.shape[-1]:
            return code
        stride = self.config.temporal_stride
        return code + self.ray_encoder(token_rays(folded.unflatten(-1, (stride, -1)), grid, self.config.ray_focal))

    @torch.inference_mode(False)  # what is kept may be used where gradients are computed
    def _query_turn(
        self, frames: int, grid: tuple[int, int], memory: CompressedMemory | MemoryTeam | None, layout: TrainingLayout | None,
        device: torch.device,
    ) -> Tensor:  # fmt: skip
        """By what the tokens of the input are turned: [T*N, head_dim/2], or [B, T*N, head_dim/2] where memories differ.

        Kept from pass to pass: in those of one chunk it is the same, and once the memory is full in those of all.
        """
        if isinstance(memory, MemoryTeam):
            rows = tuple(memory.chunk_times(frames))
        else:
            times = layout.times if layout is not None else torch.arange(frames) if memory is None else memory.chunk_times(frames)
            rows = (tuple(times.tolist()),)
        made_of = (self.rope, rows, grid, device)
        if self._turned is None or self._turned[0] != made_of:
            own = {times: self.rope(token_positions(torch.tensor(times), grid)) for times in set(rows)}
            turn = torch.stack([own[times] for times in rows]) if len(own) > 1 else own[rows[0]]
            self._turned = made_of, turn.to(device)
        return self._turned[1]

    def _visibility(
        self, memory: CompressedMemory | MemoryTeam | None, layout: TrainingLayout | None, grid: tuple[int, int], device: torch.device
    ) -> Visibility:
        if isinstance(memory, MemoryTeam):
            return Visibility(each=tuple(self._visibility(one, layout, grid, device) for one in memory.members))
        if memory is not None and layout is not None:
            raise ValueError("Pass a memory (next chunk) or a layout (whole sequence), not both.")
        if layout is not None:
            return Visibility(layout=layout, pooled_turn=self.rope(layout.pooled_positions).to(device), grid=grid)
        if memory is not None:
            return Visibility(**memory.context(self.rope))
        return Visibility()

    def _time(self, timestep: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        embedder = self.condition_embedder
        per_frame = timestep if timestep.ndim == 2 else timestep.unsqueeze(1)
        wave = embedder.timesteps_proj(per_frame.flatten()).to(embedder.time_embedder.linear_1.weight.dtype)
        temb = embedder.time_embedder(wave).to(dtype)
        modulation = embedder.time_proj(F.silu(temb))
        return temb.unflatten(0, per_frame.shape), modulation.unflatten(0, per_frame.shape).unflatten(2, (6, -1))
