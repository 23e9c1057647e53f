"""The same Vision Transformer in timm and in transformers, for comparisons of logits.

Sizes are small (two or three blocks of width 48 to 96) but every choice of the configuration is
the real one.
"""

from functools import partial

import torch
from torch import Tensor, nn

import tests.reference.torchvision_stub  # noqa: F401  (before timm)
from tests.conftest import randomise
from vitrail.models.tape import Tape
from vitrail.models.vit import VisionTransformer, ViTConfig

SMALL = {
    "patch_size": 8,
    "depth": 2,
    "width": 48,
    "heads": 3,
    "mlp_width": 96,
    "image_size": 32,
    "num_classes": 7,
}


def small(**fields) -> ViTConfig:
    return ViTConfig(**{**SMALL, **fields})


def random_model(config: ViTConfig, seed: int = 0) -> VisionTransformer:
    """Our model in float64 with every tensor random, the fixed ones too."""
    model = VisionTransformer(config).double().eval()
    randomise(model, seed)
    return model


def images_for(config: ViTConfig, batch: int = 3, seed: int = 1) -> Tensor:
    size = config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(
        batch, config.in_channels, height, width, generator=generator, dtype=torch.float64
    )


def timm_twin(config: ViTConfig, **more) -> nn.Module:
    """timm's VisionTransformer of the same configuration, in float64 and eval mode."""
    from timm.layers import QuickGELU
    from timm.models.vision_transformer import VisionTransformer as TimmViT

    c = config
    activations = {
        "gelu": nn.GELU,
        "gelu_tanh": partial(nn.GELU, approximate="tanh"),
        "quick_gelu": QuickGELU,
        "relu": nn.ReLU,
        "silu": nn.SiLU,
    }
    return (
        TimmViT(
            img_size=c.image_size,
            patch_size=c.patch_size,
            in_chans=c.in_channels,
            num_classes=c.num_classes,
            global_pool={"token": "token", "mean": "avg", "map": "map", "none": ""}[c.pool],
            embed_dim=c.width,
            depth=c.depth,
            num_heads=c.heads,
            mlp_ratio=c.mlp_width / c.width,
            qkv_bias=c.qkv_bias,
            init_values=c.layer_scale,
            class_token=c.has_class_token,
            pos_embed="none" if c.position == "none" else "learn",
            no_embed_class=not c.position_on_prefix,
            reg_tokens=c.registers,
            fc_norm=c.norm_after_pool,
            norm_layer=partial(nn.LayerNorm, eps=c.norm_eps),
            act_layer=activations[c.activation],
            **more,
        )
        .double()
        .eval()
    )


def transformers_twin(model: VisionTransformer, pooler: bool = False) -> nn.Module:
    """transformers' ViT with this model's weights, given under the names that its files have."""
    from transformers import ViTConfig as TheirConfig
    from transformers import ViTForImageClassification, ViTModel

    c = model.config
    config = TheirConfig(
        hidden_size=c.width,
        num_hidden_layers=c.depth,
        num_attention_heads=c.heads,
        intermediate_size=c.mlp_width,
        hidden_act={"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}[c.activation],
        layer_norm_eps=c.norm_eps,
        image_size=c.image_size,
        patch_size=c.patch_size,
        num_channels=c.in_channels,
        qkv_bias=c.qkv_bias,
        num_labels=c.num_classes,
    )
    kind, prefix = (ViTModel, "") if pooler else (ViTForImageClassification, "vit.")
    return kind.from_pretrained(
        None,
        config=config,
        state_dict=transformers_names(model.state_dict(), prefix),
        dtype=torch.float64,
        attn_implementation="sdpa",
    ).eval()


def transformers_names(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    top = {
        "cls_token": f"{prefix}embeddings.cls_token",
        "pos_embed": f"{prefix}embeddings.position_embeddings",
        "patch_embed.proj": f"{prefix}embeddings.patch_embeddings.projection",
        "norm": f"{prefix}layernorm",
        "pre_logits.fc": f"{prefix}pooler.dense",
        "head": "classifier",
    }
    inner = {
        "norm1": "layernorm_before",
        "attn.proj": "attention.output.dense",
        "norm2": "layernorm_after",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
    renamed = {}
    for name, tensor in state.items():
        module, _, kind = name.rpartition(".")
        if name in top:
            renamed[top[name]] = tensor
        elif module in top:
            renamed[f"{top[module]}.{kind}"] = tensor
        else:
            _, number, part = module.split(".", 2)
            block = f"{prefix}encoder.layer.{number}"
            if part == "attn.qkv":
                for third, piece in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                    renamed[f"{block}.attention.attention.{third}.{kind}"] = piece.contiguous()
            else:
                renamed[f"{block}.{inner[part]}.{kind}"] = tensor
    return renamed


@torch.no_grad()
def difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    assert ours.shape == theirs.shape
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@torch.no_grad()
def attention_share(model: VisionTransformer, images: Tensor) -> float:
    """The mean entropy of all attention, as a share of that of flat attention."""
    tape = Tape(only="*attention")
    model(images, tape=tape)
    shares = []
    for weights in tape.values():
        entropy = -(weights * weights.clamp_min(1e-300).log()).sum(-1)
        flat = torch.log(torch.tensor(float(weights.shape[-1])))
        shares.append((entropy / flat).mean())
    return torch.stack(shares).mean().item()
