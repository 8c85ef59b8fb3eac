"""How many parameters models have that are written with `ai.model`, beside the published counts."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

import ai.model as m

GUIDE = Path(__file__).parents[2] / "docs" / "guide" / "model.md"


def rows() -> list[list[str]]:
    """Returns model, our count, theirs, and who they are: the library that is asked, or where the count was read."""
    import timm
    import torchvision
    import transformers

    from ai.examples.gpt.model import Model as Gpt
    from ai.examples.stylegan2.model import Discriminator, Generator
    from ai.examples.vit.model import Model as Vit

    guide = written_in_the_guide()
    llama = transformers.LlamaConfig(
        vocab_size=128_256, hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32, num_key_value_heads=8,
        tie_word_embeddings=False,
    )  # fmt: skip
    sizes = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}
    with torch.device("meta"):
        pairs: list[tuple[str, nn.Module, nn.Module, str]] = [
            ("Llama 3.1 8B", guide["Llama"](), transformers.LlamaForCausalLM(llama), "transformers"),
            ("GPT-2 small", Gpt(50257, context=1024, dim=768, depth=12, num_heads=12, positions="learned"),
             transformers.GPT2LMHeadModel(transformers.GPT2Config()), "transformers"),
            ("ConvNeXt-T", guide["ConvNeXt"](), torchvision.models.convnext_tiny(weights=None), "torchvision"),
            *(
                (f"ViT, {size}, 16", Vit(dim=dim, depth=depth, num_heads=heads),
                 timm.create_model(f"vit_{size}_patch16_224"), "timm")
                for size, (dim, depth, heads) in sizes.items()
            ),
        ]  # fmt: skip
        found = [[name, _count(ours), _count(theirs), source] for name, ours, theirs, source in pairs]
        read: list[tuple[str, nn.Module, int]] = [
            ("StyleGAN2, 256 pixels, generator", Generator(256, nc_base=32768), 30_034_338),
            ("StyleGAN2, 256 pixels, discriminator", Discriminator(256, nc_base=32768), 28_864_129),
            ("StyleGAN2-ADA, CIFAR, generator", Generator(32, nc_base=32768, n_mapping=2, n_classes=10), 20_215_315),
            ("StyleGAN2-ADA, CIFAR, discriminator",
             Discriminator(32, nc_base=32768, n_classes=10, architecture="orig", group=32), 23_089_664),
        ]  # fmt: skip
    return found + [[name, _count(ours), f"{count:,}", "the published networks' table"] for name, ours, count in read]


def _count(model: nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in model.parameters()):,}"


def written_in_the_guide() -> dict[str, Any]:
    """Returns the names that the guide's whole models define."""
    text = GUIDE.read_text(encoding="utf-8")
    names: dict[str, Any] = {"m": m, "torch": torch}
    for block in re.findall(r"^```python\n(class (?:Llama|ConvNeXt).*?)^```$", text, re.MULTILINE | re.DOTALL):
        exec(block, names)
    return names
