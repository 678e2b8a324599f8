"""Whether a module is as the model made it: who computes from weights alone must not pass by what was put around it."""

from torch import nn


def altered(*modules: nn.Module) -> str:
    """What about these modules, or those inside, a call would do besides their own forward; "" for nothing.

    Hooks, another forward, or another class: adapters, wrapped layers, a probe of a study. The hooks by which
    accelerate moves tensors between devices are none: they change no number.
    """
    for module in (inner for outer in modules for inner in outer.modules()):
        name = type(module).__name__
        if not type(module).__module__.startswith(("torch.nn.modules.", "minikeye.")):
            return f"{name} is not the model's own"
        moved = hasattr(module, "_hf_hook")
        if module._forward_hooks or module._forward_pre_hooks or ("forward" in vars(module) and not moved):
            return f"{name} has a hook or another forward"
    return ""


def altered_decoder(decoder: nn.Module) -> str:
    """`altered` of a decoder's layers, norm and embedding; rules that choose keys or experts count as well."""
    if why := altered(*decoder.layers, decoder.norm, decoder.embed_tokens):
        return why
    ruled = any(layer.self_attn.rule is not None or layer.mlp.gate.rule is not None for layer in decoder.layers)
    return "a rule chooses keys or experts" if ruled else ""
