"""Names the model families that are not Stable Diffusion 1.x, 2.x or SDXL, and quantized weights, by the names of their tensors.

The order counts, because later families share names with earlier ones.
"""

from __future__ import annotations

from collections.abc import Iterable

#: What a checkpoint is -> parts of names that all occur in it.
FOREIGN: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("holds quantized weights (nf4 or fp4)", (".quant_state.",)),
    ("holds quantized weights (int8 of bitsandbytes)", (".SCB",)),
    ("holds quantized weights (nvfp4)", (".weight_scale_2",)),
    ("holds quantized weights (eight bits with scales for blocks)", (".weight_scale_inv",)),
    ("holds quantized weights (GPTQ, AWQ or SVDQuant)", (".qweight",)),
    ("is an SDXL refiner, which only finishes pictures of SDXL", ("conditioner.embedders.0.model.",)),
    ("is a Stable Video Diffusion checkpoint", (".time_stack.",)),
    ("is a Chroma checkpoint", ("distilled_guidance_layer.",)),
    ("is a HunyuanVideo checkpoint", ("txt_in.individual_token_refiner.",)),
    ("is a HunyuanDiT checkpoint", ("mlp_t5.",)),
    ("is a HunyuanDiT checkpoint", ("time_extra_emb.", "text_embedder.")),
    ("is a Hunyuan image checkpoint", ("byt5_in.",)),
    ("is a Flux.2 checkpoint", ("double_stream_modulation_img.",)),
    ("is a Flux checkpoint", ("double_blocks.",)),
    ("is a Flux checkpoint", ("single_transformer_blocks.",)),
    ("is an SD3 checkpoint", ("joint_blocks.",)),
    ("is an SD3 checkpoint", ("transformer_blocks.0.attn.add_q_proj.", "pos_embed.proj.")),
    ("is a Qwen-Image checkpoint", ("transformer_blocks.0.attn.add_q_proj.", "txt_norm.")),
    ("is an AuraFlow checkpoint", ("double_layers.",)),
    ("is an AuraFlow checkpoint", ("joint_transformer_blocks.",)),
    ("is a Stable Cascade checkpoint", ("clip_txt_mapper.",)),
    ("is a Stable Cascade checkpoint", ("effnet_mapper.",)),
    ("is a Stable Cascade checkpoint", ("clip_txt_pooled_mapper.",)),
    ("is a Z-Image checkpoint", ("cap_embedder.", "cap_pad_token")),
    ("is a Lumina checkpoint", ("cap_embedder.", "noise_refiner.")),
    ("is a Sana checkpoint", (".inverted_conv.",)),
    ("is a Sana checkpoint", (".conv_inverted.",)),
    ("is an LTX-Video checkpoint", ("patchify_proj.",)),
    ("is a PixArt checkpoint", ("t_block.1.", "y_embedder.")),
    ("is a PixArt checkpoint", ("adaln_single.", "caption_projection.")),
    ("is a Kolors checkpoint", ("encoder_hid_proj.",)),
    ("is a Wan checkpoint", ("cross_attn.norm_k.", "time_projection.")),
    ("is a Stable Audio checkpoint", ("pretransform.", "to_timestep_embed.")),
)


def foreign_family(names: Iterable[str]) -> str:
    """What a checkpoint with tensors of these names is, such as `is a Flux checkpoint`; empty where it is none of these."""
    joined = "\n".join(name for name in names if "lora" not in name)  # a LoRA names the layers of any family
    return next((what for what, parts in FOREIGN if all(part in joined for part in parts)), "")
