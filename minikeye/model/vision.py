"""Native-resolution vision tower and projector: pixels in, visual tokens of the decoder's width out.

Axes: p patch (all frames packed one after the other, raster order), f frame, d width, h head, e head width.
Report, section 2.1; module names are those of the released checkpoint.
"""

from itertools import groupby

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from minikeye.config import VisionConfig
from minikeye.model.rope import grid_rope, rotate

Run = tuple[int, int, int]  # (frames, rows, columns): neighbouring frames of the same size, sizes in patches


def runs(grids: Int[Tensor, "f 3"]) -> list[Run]:
    """Group neighbouring frames of equal size, so that attention can treat each group as one batch."""
    sizes = [(int(rows), int(columns)) for _, rows, columns in grids.tolist()]
    return [(len(list(group)), *size) for size, group in groupby(sizes)]


class VisionEmbeddings(nn.Module):
    """Patch embedding plus the learned position table, resized to each frame's own grid."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.side = config.position_side
        size = config.patch_size
        self.patch_embedding = nn.Conv2d(3, config.width, kernel_size=size, stride=size)
        self.position_embedding = nn.Embedding(self.side**2, config.width)
        nn.init.normal_(self.position_embedding.weight, std=0.02)
        # Shipped in the released checkpoint, never read there: positions are always interpolated.
        self.packing_position_embedding = nn.Embedding(config.packing_positions, config.width)
        self.packing_position_embedding.requires_grad_(False)

    def forward(self, patches: Float[Tensor, "p 3 s s"], sizes: list[Run]) -> Float[Tensor, "p d"]:
        x = self.patch_embedding(patches).flatten(1)  # [p 3 s s] -> [p d]
        return x + torch.cat([self.positions(rows, columns).repeat(count, 1) for count, rows, columns in sizes])

    def positions(self, rows: int, columns: int) -> Float[Tensor, "p d"]:
        """The table, read at rows x columns evenly spaced places (bilinear, align_corners=False)."""
        table = rearrange(self.position_embedding.weight, "(r c) d -> 1 d r c", r=self.side)
        if (rows, columns) != (self.side, self.side):
            table = F.interpolate(table.float(), (rows, columns), mode="bilinear", align_corners=False).to(table.dtype)
        return rearrange(table, "1 d r c -> (r c) d")


class VisionAttention(nn.Module):
    """Attention among the patches of one frame. Frames are packed, and never see each other."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.heads, d = config.heads, config.width
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(d, d) for _ in range(4))

    def forward(self, x: Float[Tensor, "p d"], sizes: list[Run], cos: Tensor, sin: Tensor) -> Float[Tensor, "p d"]:
        q, k, v = (rearrange(f(x), "p (h e) -> p h e", h=self.heads) for f in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        out, first = [], 0
        for count, rows, columns in sizes:
            end = first + count * rows * columns
            batch = [rearrange(z[first:end], "(f p) h e -> f h p e", f=count) for z in (q, k, v)]
            out.append(rearrange(F.scaled_dot_product_attention(*batch), "f h p e -> (f p) (h e)"))
            first = end
        return self.out_proj(torch.cat(out))


class VisionMLP(nn.Module):
    def __init__(self, config: VisionConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.mlp_width)
        self.fc2 = nn.Linear(config.mlp_width, config.width)

    def forward(self, x: Float[Tensor, "p d"]) -> Float[Tensor, "p d"]:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class VisionLayer(nn.Module):
    """Pre-LayerNorm transformer block."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.self_attn = VisionAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.mlp = VisionMLP(config)

    def forward(self, x: Float[Tensor, "p d"], sizes: list[Run], cos: Tensor, sin: Tensor) -> Float[Tensor, "p d"]:
        x = x + self.self_attn(self.layer_norm1(x), sizes, cos, sin)
        return x + self.mlp(self.layer_norm2(x))


class VisionEncoder(nn.Module):
    """The stack of blocks; the 2D rotation is the same in each, so it is computed once."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.head_width, self.theta = config.head_width, config.rope_theta
        self.layers = nn.ModuleList(VisionLayer(config) for _ in range(config.layers))

    def forward(self, x: Float[Tensor, "p d"], sizes: list[Run]) -> Float[Tensor, "p d"]:
        cos, sin = self.rotation(sizes, x.device)
        for layer in self.layers:
            x = layer(x, sizes, cos, sin)
        return x

    def rotation(self, sizes: list[Run], device: torch.device) -> tuple[Float[Tensor, "p e"], Float[Tensor, "p e"]]:
        tables = [(n, grid_rope(rows, cols, self.head_width, self.theta, device)) for n, rows, cols in sizes]
        cos, sin = (torch.cat([pair[i].repeat(n, 1) for n, pair in tables]) for i in (0, 1))
        return cos, sin


class VisionTransformer(nn.Module):
    """Patches of any number of frames -> one feature per patch."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.embeddings = VisionEmbeddings(config)
        self.encoder = VisionEncoder(config)
        self.post_layernorm = nn.LayerNorm(config.width, eps=config.norm_eps)

    def forward(self, patches: Float[Tensor, "p 3 s s"], grids: Int[Tensor, "f 3"]) -> Float[Tensor, "p d"]:
        sizes = runs(grids)
        return self.post_layernorm(self.encoder(self.embeddings(patches, sizes), sizes))


class VisionTower(nn.Module):
    """Holds the transformer under the name the checkpoint uses, and feeds it whole frames in chunks."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.patch_size, self.merge = config.patch_size, config.merge
        self.chunk_patches = 8192  # patches per pass: whole frames, at least one; the release's Chunk ViT
        self.vision_model = VisionTransformer(config)

    def forward(self, patches: Float[Tensor, "p 3 s s"], grids: Int[Tensor, "f 3"]) -> Float[Tensor, "p d"]:
        """Features of all patches. Frames never interact, so any `chunk_patches` gives the same output.

        Raises ValueError where patches and grids do not match.
        """
        self.validate(patches, grids)
        patches = patches.to(self.vision_model.post_layernorm.weight.dtype)
        split, sizes = [0], [0]  # frames and patches of each pass
        for count in grids.prod(dim=1).tolist():
            if split[-1] and sizes[-1] + count > self.chunk_patches:
                split, sizes = [*split, 0], [*sizes, 0]
            split[-1], sizes[-1] = split[-1] + 1, sizes[-1] + count
        pieces = zip(patches.split(sizes), grids.split(split), strict=True)
        return torch.cat([self.vision_model(p, g) for p, g in pieces])

    def validate(self, patches: Tensor, grids: Tensor) -> None:
        size = self.patch_size
        if patches.ndim != 4 or tuple(patches.shape[1:]) != (3, size, size):
            raise ValueError(f"patches must be [p, 3, {size}, {size}], got {list(patches.shape)}")
        if grids.ndim != 2 or grids.shape[1] != 3 or len(grids) == 0:
            raise ValueError(f"grids must be [frames >= 1, 3] = (1, rows, columns) in patches, got {list(grids.shape)}")
        t, rows, columns = grids.unbind(1)
        if (t != 1).any() or (rows % self.merge).any() or (columns % self.merge).any() or (grids < 1).any():
            raise ValueError(
                f"each grid must be (1, rows, columns) with rows and columns multiples of {self.merge}; got "
                f"{grids.tolist()[:4]}: give one grid per video frame, frames resized by the processor"
            )
        if int(grids.prod(dim=1).sum()) != len(patches):
            raise ValueError(f"grids describe {int(grids.prod(dim=1).sum())} patches, got {len(patches)}")


class Projector(nn.Module):
    """2x2 neighbouring patches become one visual token of the decoder's width."""

    def __init__(self, config: VisionConfig, width: int):
        super().__init__()
        self.merge = config.merge
        merged = config.width * config.merge**2
        self.pre_norm = nn.LayerNorm(merged, eps=config.projector_norm_eps)
        self.linear_1 = nn.Linear(merged, merged)
        self.linear_2 = nn.Linear(merged, width)

    def forward(self, x: Float[Tensor, "p d"], grids: Int[Tensor, "f 3"]) -> Float[Tensor, "n d2"]:
        x = self.pre_norm(self.merge_patches(x, grids))
        return self.linear_2(F.gelu(self.linear_1(x)))

    def merge_patches(self, x: Float[Tensor, "p d"], grids: Int[Tensor, "f 3"]) -> Float[Tensor, "n d4"]:
        out, first = [], 0
        for count, rows, columns in runs(grids):
            end = first + count * rows * columns
            pattern = "(f r p1 c p2) d -> (f r c) (p1 p2 d)"
            frame = dict(f=count, r=rows // self.merge, p1=self.merge, p2=self.merge)
            out.append(rearrange(x[first:end], pattern, **frame))
            first = end
        return torch.cat(out)
