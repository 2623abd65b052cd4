"""Every family of transformers' causal auto-class, tiny and random, against plain transformers.

``python -m tests.bench.families [FAMILY …]``: of each family one layer in each position is
measured, then all body layers at once, and the exported checkpoint is loaded again. A line a family
says whether qtui's figures equal those of plain transformers, what it refused and why, or by how
much it differs, which is a fault.
"""

# ruff: noqa: BLE001  (a family may fail in any way: the table says how)

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Collection, Iterator
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

FORMAT, BITS, GROUP = "int3-g32", 3, 32
LIMIT = 150.0
"""Seconds of processor time for one family."""
PATIENCE = 900.0
"""Seconds for one family on a machine that is busy."""
TOKENS, WINDOW, BATCH = 256, 32, 128
MOST_PARAMETERS = 20_000_000

SMALL: dict[str, Any] = {
    **dict.fromkeys(
        ("hidden_size", "n_embd", "d_model", "dim", "emb_dim", "word_embed_proj_dim"), 64
    ),
    **dict.fromkeys(
        (
            "intermediate_size", "ffn_dim", "n_inner", "d_ff", "ffn_hidden_size", "d_inner",
            "decoder_ffn_dim", "encoder_ffn_dim", "dim_feedforward", "feed_forward_size",
            "shared_expert_intermediate_size", "expert_ffn_hidden_size",
        ),
        128,
    ),
    **dict.fromkeys(("moe_intermediate_size", "shared_intermediate_size"), 64),
    **dict.fromkeys(
        (
            "num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads",
            "encoder_attention_heads", "num_decoder_attention_heads",
            "num_encoder_attention_heads",
        ),
        4,
    ),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 2),
    **dict.fromkeys(
        (
            "head_dim", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "d_kv",
            "index_head_dim", "global_head_dim", "attention_head_dim",
        ),
        16,
    ),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 32),
    **dict.fromkeys(
        (
            "num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts",
            "num_routed_experts",
        ),
        4,
    ),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts"), 2),
    **dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace", "moe_layer_start_index"), 1),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_target_positions"), 256),
    "vocab_size": 320,
    "pad_token_id": 0,
    "rotary_dim": 8,
    "vocab_size_per_layer_input": 320,
    "hidden_size_per_layer_input": 16,
    "query_pre_attn_scalar": 16,
    "sliding_window": 8,
    "num_kv_shared_layers": 0,
    "mamba_d_state": 16,
    "state_size": 16,
    "attention_hidden_size": 64,
    "mamba_d_conv": 4,
    "bos_token_id": 256,
    "eos_token_id": 256,
    "is_decoder": True,
}  # fmt: skip
LEFT_OUT: tuple[tuple[str, ...], ...] = (
    (),
    ("head_dim",),
    ("head_dim", "global_head_dim", "sliding_window"),
    ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "head_dim", "index_head_dim"),
    ("num_key_value_heads", "num_kv_heads", "head_dim"),
)
"""What is left as it is by default, where a family does not run otherwise."""
DEPTHS = (
    "num_hidden_layers", "n_layer", "num_layers", "n_layers", "decoder_layers", "encoder_layers",
    "num_decoder_layers", "num_encoder_layers",
)  # fmt: skip
_DOTS3_HEADS = {
    "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 32, "kv_lora_rank": 32,
    "head_dim": 32, "qk_nope_head_dim": 16, "v_head_dim": 16,
}  # fmt: skip
DOTS3 = {
    **_DOTS3_HEADS,
    **{f"swa_{name}": value for name, value in _DOTS3_HEADS.items()},
    "num_hidden_layers": 4,
    "index_n_heads": 4,
    "index_topk": 8,
    "shared_experts_intermediate_size": 64,
    "sliding_window": 8,
    "qk_rope_head_dim": 16,
}
"""Sizes that differ by the layer's number."""
DRAFTER = {
    "num_hidden_layers": 3,
    "num_kv_shared_layers": 3,
    "hidden_size_per_layer_input": 0,
    "vocab_size_per_layer_input": 0,
}
"""All blocks read keys and values of another model."""
NOT_ALONE = {
    f"{text}_assistant": {"text_config": {"model_type": f"{text}_text", **DRAFTER}}
    for text in ("gemma4", "gemma4_unified")
}
"""Drafters, which do not run without the model that they draft for, and what makes one valid."""
SPECIAL: dict[str, dict[str, Any]] = {
    "opt": {"word_embed_proj_dim": 32, "do_layer_norm_before": False},
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 1},
    "gpt_neo": {
        "num_hidden_layers": 2,
        "num_layers": 2,
        "attention_types": [[["global", "local"], 1]],
    },
    "dots1": {"num_key_value_heads": 2, "n_shared_experts": 1},
    "lfm2_moe": {
        "num_hidden_layers": 3,
        "layer_types": ["conv", "full_attention", "conv"],
        "num_dense_layers": 1,
    },
    "longcat_flash": {"num_key_value_heads": 4, "zero_expert_num": 2},
    "blt": {
        "encoder_hash_byte_group_vocab": 512,
        "encoder_hash_byte_group_size": [3, 4],
        "local_attention_window_len": 16,
        "patcher_config": {"sliding_window": 16},
        "encoder_config": {"hidden_size_global": 64},
        "decoder_config": {"hidden_size_global": 64},
    },
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}
    },
    "dbrx": {
        "attn_config": {"rope_theta": 1e4, "kv_n_heads": 2, "clip_qkv": 8},
        "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "dots3_note_text": DOTS3,
    "dots3_note": {
        "text_config": DOTS3,
        "vision_config": {
            "pyramid_num_routed": [-1, -1, 4],
            "adapter_in_dim": 64,
            "adapter_out_dim": 64,
        },
        "audio_config": {
            "adapter_input_size": 64,
            "adapter_out_dim": 64,
            "downsample_hidden_size": 32,
        },
    },
    "reformer": {"axial_pos_embds_dim": [16, 48], "axial_pos_shape": [16, 16]},
    "gemma4_assistant": {"text_config": DRAFTER},
    "gemma4_unified_assistant": {"text_config": DRAFTER},
    "xmod": {"default_language": "en_XX"},
    "zaya": {"num_experts_per_tok": 1},
    "zamba": {
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
        "num_hidden_layers": 6,
        "num_key_value_heads": 4,
        "layers_block_type": ["mamba", "hybrid", "mamba", "mamba", "hybrid", "mamba"],
    },
    "zamba2": {
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
        "num_hidden_layers": 6,
        "num_mem_blocks": 1,
        "n_mamba_heads": 4,
        "mamba_headdim": 32,
        "mamba_ngroups": 1,
        "num_key_value_heads": 4,
        "layers_block_type": ["mamba", "hybrid", "mamba", "mamba", "hybrid", "mamba"],
    },
}
"""What a family needs besides to be as awkward as its real checkpoints."""


def families() -> list[str]:
    """The model types that the causal auto-class knows."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_config(family: str) -> Any:
    """A small configuration: the first of a few that runs.

    Raises:
        Exception: of the first attempt, if none does.
    """
    from transformers import CONFIG_MAPPING

    kind = CONFIG_MAPPING[family]
    first: Exception | None = None
    for blocks, left_out in itertools.product((3, 4, 6, 2), LEFT_OUT):
        try:
            config = _config(kind, family, blocks, left_out)
            size = sum(p.numel() for p in _built(config, meta=True).parameters())
            if size > MOST_PARAMETERS:
                raise ValueError(f"{size / 1e6:.0f}M parameters")
            if family not in NOT_ALONE:
                _run(_built(config, meta=False))
        except Exception as error:
            first = first or error
        else:
            return config
    assert first is not None
    raise first


def _config(kind: Any, family: str, blocks: int, left_out: Collection[str]) -> Any:
    fields = {name: value for name, value in SMALL.items() if name not in left_out}
    fields |= dict.fromkeys(DEPTHS, blocks)
    return _small(kind(**NOT_ALONE.get(family, {})), fields, SPECIAL.get(family, {}))


def _small(default: Any, fields: dict[str, Any], special: dict[str, Any]) -> Any:
    """A configuration of the same kind with small sizes, and its parts likewise."""
    parts = {
        name: _small(part, fields, special.get(name, {})).to_dict()
        for name in default.sub_configs
        if hasattr(part := getattr(default, name, None), "sub_configs")
    }
    own = {name: value for name, value in fields.items() if _takes(default, name)}
    own |= {name: value for name, value in special.items() if name not in parts}
    if "text_config" in parts:  # what it passes on to its text
        own = {name: value for name, value in own.items() if name in vars(default)}
    return type(default)(**{**own, **parts})


def _takes(config: Any, name: str) -> bool:
    if isinstance(getattr(type(config), name, None), property):
        return False  # XLNet has no limit of positions
    try:
        return hasattr(config, name)
    except Exception:  # an attribute that is another one in each layer
        return False


def _run(model: Any) -> None:
    import torch

    with torch.no_grad():
        model.eval()(input_ids=torch.arange(2, 34)[None], use_cache=False)


def _built(config: Any, *, meta: bool) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta" if meta else "cpu"):
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def write(family: str, folder: Path) -> None:
    """Write a tiny random checkpoint of a family.

    Raises:
        Exception: it cannot be made small.
    """
    import torch

    from tests import tiny

    config = tiny_config(family)
    torch.manual_seed(0)
    model = _built(config, meta=False)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 2:
                parameter.copy_(noise * 1.2 / parameter.shape[-1] ** 0.5)
            elif parameter.dim() > 2 or ("norm" not in name and name.endswith("bias")):
                parameter.copy_(noise * 0.1)
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)


def examine(family: str, folder: Path, text: str) -> Iterator[tuple[str, str]]:
    """Compare one family; yields what was looked at and the outcome."""
    import engine
    from tests import brute_force

    try:
        write(family, folder / "model")
    except Exception as error:
        yield "build", f"not built: {type(error).__name__}: {_line(error)}"
        return
    (folder / "text.txt").write_text(text)
    try:
        plain = brute_force.load(folder / "model")
        plain.config.use_cache = False  # a cache may know attention alone
    except Exception as error:
        yield "plain", f"plain transformers: {type(error).__name__}: {_line(error)}"
        return
    rows = brute_force.windows(folder / "model", text, TOKENS, WINDOW)
    try:
        before = list(brute_force.log_probabilities(plain, rows, BATCH // WINDOW))
        baseline = brute_force.baseline(plain, rows, BATCH // WINDOW)
    except Exception as error:
        yield "plain", f"plain transformers: {type(error).__name__}: {_line(error)}"
        return
    try:
        model = engine.open(
            str(folder / "model"), text=str(folder / "text.txt"), tokens=TOKENS, seq_len=WINDOW,
            batch_tokens=BATCH, device="cpu", dtype="fp32",
        )  # fmt: skip
    except engine.errors.EngineError as error:
        yield "open", f"refused: {_line(error, 400)}"
        return
    with model:
        try:
            scored = model.evaluate({}).document
        except engine.errors.EngineError as error:
            yield "baseline", f"refused: {_line(error)}"
            return
        yield "baseline", _same(scored.baseline.nll, baseline)
        layers = model.session.layers
        yield "rows", same_rows(folder / "model", layers)
        shapes = dict(zip(layers.names, layers.shapes, strict=True))
        modules = modules_by_name(plain, folder / "model")
        modules |= experts_of(plain, layers, folder / "model")
        body = {}
        for name, block in zip(layers.names, layers.blocks, strict=True):
            module = modules.get(name)
            if module is not None and block >= 0 and shapes[name][-1] % GROUP == 0:
                body[name] = (module, changed_to(module))
        for position, name in positions(layers):
            module = modules.get(name)
            if module is None:
                yield position, f"no module {name} in plain transformers"
                continue
            changed = changed_to(module)
            expected = brute_force.effect(plain, module, changed, rows, BATCH // WINDOW, before)
            try:
                found = model.evaluate({name: FORMAT}).document.recipe
            except engine.errors.EngineError as error:
                yield f"{position} {name}", f"refused: {_line(error)}"
                continue
            yield f"{position} {name}", _same(found.kl, expected.kl)
        if not body:
            yield "body", "no layer that plain transformers has by that name"
            return
        recipe = dict.fromkeys(body, FORMAT)
        expected = brute_force.together(plain, dict(body.values()), rows, BATCH // WINDOW, before)
        found = model.evaluate(recipe).document.recipe
        yield "body", _same(found.kl, expected.kl)
        routed = {name for name in body if isinstance(body[name][0], Experts)}
        linear = dict.fromkeys(body.keys() - routed, "int4-g32")
        recipes = {"export": linear}
        if routed:
            recipes["export with experts"] = {**linear, **dict.fromkeys(routed, "int4-g32-sym")}
        for what, recipe in recipes.items():
            yield what, exported(model, recipe, folder / what.replace(" ", "-"), rows)


def exported(model: Any, recipe: dict[str, str], out: Path, rows: Any) -> str:
    """Export a recipe and load it again: the NLL that plain transformers has from the files."""
    import engine
    from tests import brute_force

    try:
        scored = model.evaluate(recipe).document.recipe
        model.export(str(out), recipe).document  # noqa: B018
    except engine.errors.EngineError as error:
        return f"refused: {_line(error, 400)}"
    try:
        again = brute_force.load(out)
        again.config.use_cache = False
        nll = brute_force.baseline(again, rows, BATCH // WINDOW)
    except Exception as error:
        return f"DIFFERS: does not load: {type(error).__name__}: {_line(error)}"
    return _same(scored.nll, nll, 1e-4)


def same_rows(folder: Path, layers: Any) -> str:
    """Whether the table made from the files alone has the model's layers."""
    from engine.checkpoint import list_layers, open_checkpoint

    files = {row.name: (row.role, tuple(row.shape)) for row in list_layers(open_checkpoint(folder))}
    shapes = [tuple(shape) for shape in layers.shapes]
    model = dict(zip(layers.names, zip(layers.roles, shapes, strict=True), strict=True))
    unlike = sorted(
        name for name in files.keys() | model.keys() if files.get(name) != model.get(name)
    )
    if not unlike:
        return "equal"
    return f"{len(unlike)} rows of the files are other layers in the model, such as {unlike[0]}"


class Experts:
    """A parameter of plain transformers that holds the weights of several experts."""

    def __init__(self, weight: Any, *, turned: bool) -> None:
        """``turned``: it is ``[experts, in, out]``."""
        self.weight, self.turned = weight, turned


def experts_of(model: Any, layers: Any, folder: Path) -> dict[str, Experts]:
    """The parameters of layers of experts, by the layer's name: the same, or of equal values."""
    import torch
    from safetensors.torch import load_file

    parameters = {n: p for n, p in model.named_parameters() if p.dim() == 3}
    stored = {k: v for path in folder.glob("*.safetensors") for k, v in load_file(path).items()}
    found = {}
    for name, role, shape in zip(layers.names, layers.roles, layers.shapes, strict=True):
        if role != "experts":
            continue
        own = next((n for n in (name, f"{name}.weight") if n in parameters), "")
        on_disk = next((n for n in (name, f"{name}.weight") if n in stored), "")
        if not own and on_disk:
            same = stored[on_disk].float()
            own = next((n for n, p in parameters.items() if torch.equal(p.detach(), same)), "")
        if not own:
            continue
        home = model.get_submodule(own.rpartition(".")[0])
        parameter = parameters[own]
        turned = tuple(parameter.shape) != tuple(shape) or getattr(home, "is_transposed", False)
        found[name] = Experts(parameter, turned=turned)
    return found


def changed_to(module: Any) -> Any:
    """A module's weight in `FORMAT`, as `brute_force.together` takes it."""
    import torch

    from tests import brute_force

    if not isinstance(module, Experts):
        return brute_force.quantised(brute_force.oriented(module), BITS, GROUP, torch.float16)
    weight = module.weight.detach()
    weight = weight.transpose(-1, -2) if module.turned else weight
    each = [brute_force.quantised(w.contiguous(), BITS, GROUP, torch.float16) for w in weight]
    changed = torch.stack(each)
    return changed.transpose(-1, -2).contiguous() if module.turned else changed


def modules_by_name(model: Any, folder: Path) -> dict[str, Any]:
    """The modules of layers by their name on disk: the same, or that of an equal tensor."""
    import torch
    from safetensors.torch import load_file

    from tests import brute_force

    found = dict(brute_force.weights(model))
    for path in folder.glob("*.safetensors"):
        for key, tensor in load_file(path).items():
            name = key.removesuffix(".weight")
            if name in found or tensor.dim() != 2:
                continue
            equal = (m for m in found.values() if torch.equal(m.weight, tensor.float()))
            if (module := next(equal, None)) is not None:
                found[name] = module
    for name, module in (
        ("lm_head", model.get_output_embeddings()),
        ("embed_out", model.get_output_embeddings()),
    ):
        found.setdefault(name, module)
    return found


def positions(layers: Any) -> Iterator[tuple[str, str]]:
    """One layer before the blocks, in the first and in the last, every one after them, the head;
    and of the first and the last block with experts one layer of them."""
    blocks = [block for block in layers.blocks if block >= 0]
    first, last = (min(blocks), max(blocks)) if blocks else (-1, -1)
    told: set[str] = set()
    experts: dict[int, str] = {}
    for name, block, role in zip(layers.names, layers.blocks, layers.roles, strict=True):
        position = {first: "first block", last: "last block"}.get(block, "")
        if block < 0:
            position = f"{role}, outside the blocks"
        if role == "experts" and block >= 0:
            experts.setdefault(block, name)
        if position and (block < 0 or position not in told):
            told.add(position)
            yield position, name
    for block in sorted({min(experts), max(experts)} if experts else ()):
        yield f"experts of block {block}", experts[block]


def _same(ours: float, theirs: float, tolerance: float = 1e-5) -> str:
    if abs(ours - theirs) <= max(tolerance * abs(theirs), 2e-7):
        return "equal"
    return f"DIFFERS: {ours:.8g}, plain transformers {theirs:.8g}"


def _line(error: BaseException, most: int = 160) -> str:
    return " ".join(str(error).split())[:most]


def _child(family: str, text: str, home: str, told: Connection) -> None:
    for name in ("STATE_HOME", "CONFIG_HOME", "CACHE_HOME", "RUNTIME_DIR"):
        os.environ[f"XDG_{name}"] = home
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    try:
        _check_here()
        for line in examine(family, Path(home), text):
            told.send(line)
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        told.send(("", f"CRASH: {type(error).__name__}: {_line(error)} ({where.name})"))
    told.close()


def _check_here() -> None:
    """Exports are checked in this process: another one takes as long as all the rest."""
    from engine.export import load_check

    def asked(_loader: Any, question: Any, _go_on: Any) -> str:
        planned = isinstance(question, load_check._Planned)
        return load_check.problem_of_plan(question) if planned else load_check.problem_of(question)

    load_check.Loader._asked = asked  # type: ignore[method-assign]


def outcomes(family: str, text: str) -> list[tuple[str, str]]:
    """What a process of its own finds out about one family."""
    context = get_context("forkserver")
    ours, theirs = context.Pipe(duplex=False)
    found: list[tuple[str, str]] = []
    with tempfile.TemporaryDirectory(prefix="q") as home:
        process = context.Process(target=_child, args=(family, text, home, theirs))
        process.start()
        theirs.close()
        end = time.monotonic() + PATIENCE
        try:
            while _processor_time(process.pid) < LIMIT and time.monotonic() < end:
                if ours.poll(1.0):
                    found.append(ours.recv())
            found.append(("", f"no end after {LIMIT:.0f} s"))
        except EOFError:
            pass
        process.kill()
        process.join()
    return found


def _processor_time(pid: int | None) -> float:
    """Seconds of processor time that a process has taken; 0 where that is not known."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, after_name[11:13])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*")
    given = parser.parse_args()
    get_context("forkserver").set_forkserver_preload(["torch", "transformers", "engine.library"])
    text = Path(__file__).read_text() * 2
    faults = 0
    for family in given.families or families():
        found = outcomes(family, text)
        wrong = [each for each in found if each[1] != "equal"]
        faults += sum(said.startswith(("DIFFERS", "CRASH")) for _, said in wrong)
        equal = len(found) - len(wrong)
        print(f"{family:28} {equal} equal", *(f"{w}: {s}" for w, s in wrong), sep="  ")
        sys.stdout.flush()
    print(f"{faults} faults")


if __name__ == "__main__":
    main()
