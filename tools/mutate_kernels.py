"""Break the kernels line by line and see their tests fail: python tools/mutate_kernels.py [FILE or BROKEN ...].

Each mutant is a copy of kernels/ with one replacement and is tested in a separate process; the checkout is not changed.
Prints a table of the first test to fail for each; exits with 1 if a mutant survives. Takes minutes in the interpreter.
"""

import contextlib
import importlib.util
import io
import os
import pathlib
import re
import shutil
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
TESTS = {
    "patch_embed": ["test_patch_embed.py"],
    "prototype_attention": ["test_prototype_attention.py"],
    "alignment_loss": ["test_deep_alignment_loss.py", "test_alignment_loss.py"],
    "deep_alignment_loss": ["test_deep_alignment_loss.py"],
    "twin_norm": ["test_twin_norm.py"],
    "forecast_losses": ["test_forecast_losses.py"],
    "_reduce": ["test_prototype_attention.py"],
    "_launch": ["test_launch.py"],
}
# (file, what is broken, original code, replacement); one mutant per line, however long
# ruff: noqa: E501
MUTANTS = [
    ("patch_embed", "steps beyond L count", "in_range = (offs_l < L) & in_row", "in_range = (offs_l >= 0) & in_row"),
    ("patch_embed", "missing values are read", "in_range & (tl.load(mask_row + offs_l", "in_range | (tl.load(mask_row + offs_l"),
    ("patch_embed", "missing values enter the mean", "tl.where(observed, x - x_first, 0.0)", "x - x_first"),
    ("patch_embed", "missing values enter the variance", "tl.where(observed, (x - loc) - loc_rest, 0.0)", "(x - loc) - loc_rest"),
    ("patch_embed", "first value may be missing", "in_row = in_row & (first < L)", "first = first * 0"),
    ("patch_embed", "level's rounding lost in scale", "(x - loc) - loc_rest, 0.0)\n        squares", "x - loc, 0.0)\n        squares"),
    ("patch_embed", "level's rounding lost in patches", "((x - loc) - loc_rest) * inverse, 0.0)", "(x - loc) * inverse, 0.0)"),
    ("patch_embed", "eps left out", "squares / count + eps", "squares / count"),
    ("patch_embed", "patches start too early", "start_l = first + (offs_n * patch_stride)[None, :]\n", "start_l = (offs_n * patch_stride)[None, :]\n"),
    ("patch_embed", "patches of dweight start too early", "first + (offs_n * patch_stride)[None, :], offs_p[:, None]", "(offs_n * patch_stride)[None, :], offs_p[:, None]"),
    ("patch_embed", "library: patches start too early", "first + n * patch_stride, offs_p", "n * patch_stride, offs_p"),
    ("patch_embed", "library: all patches in one place", "(offs_r.to(tl.int64) * N + n) * P", "(offs_r.to(tl.int64) * N) * P"),
    ("patch_embed", "every program reads the first weight block", "offs_d = block * BLOCK_D + tl.arange(0, BLOCK_D)", "offs_d = tl.arange(0, BLOCK_D)"),
    ("patch_embed", "a block's last patches are left out", "min(last_tile - block * tiles_n, tiles_n)", "min(last_tile - block * tiles_n, tiles_n - 1)"),
    ("patch_embed", "strides of time and width of x's mask", "offs_l * stride_ol, mask=in_range", "offs_l * stride_xl, mask=in_range"),
    ("patch_embed", "weight beyond P is read", "mask=(offs_p < P) & in_d[None, :]", "mask=(offs_p >= 0) & in_d[None, :]"),
    ("patch_embed", "bias left out", "acc + bias[None, :]", "acc"),
    ("patch_embed", "tokens beyond N are stored", "mask=in_patch[:, None] & in_d[None, :])\n\n", "mask=(row < R)[:, None] & in_d[None, :])\n\n"),
    ("patch_embed", "scale is not stored", "        tl.store(scale_ptr + row, scale, mask=row < R)\n", ""),
    ("patch_embed", "each split overwrites dweight", "dweight_ptr += split.to(tl.int64) * stride_split", "dweight_ptr += 0"),
    ("patch_embed", "a row without values is divided by none", "count = tl.maximum(count, 1.0)", "count = count + 0.0"),
    ("patch_embed", "first columns of the weight again", "weight = _load_weight(weight_row, start, P", "weight = _load_weight(weight_row, 0, P"),
    ("patch_embed", "each split overwrites dbias", "dbias_ptr += split.to(tl.int64) * stride_split", "dbias_ptr += 0"),
    ("patch_embed", "gradient's strides swapped", "b * stride_gb + c * stride_gc", "b * stride_gc + c * stride_gb"),
    ("patch_embed", "a tile of the last split is left out", "tiles_per_split=triton.cdiv(tiles, splits)", "tiles_per_split=max(1, tiles // splits)"),
    ("prototype_attention", "keys beyond V score 0", 'tl.where(offs_v[None, :] < V, scores, float("-inf"))', "scores"),
    ("prototype_attention", "keys beyond V in dq", "tl.where(offs_v[None, :] < V, tl.exp2(scores * scale_log2 - lse[:, None]), 0.0)", "tl.exp2(scores * scale_log2 - lse[:, None])"),
    ("prototype_attention", "rows beyond the end are read", "mask=(offs[:, None] < size) & (offs_e[None, :] < E), other=0.0)", "mask=(offs[:, None] >= 0) & (offs_e[None, :] < E), other=0.0)"),
    ("prototype_attention", "columns beyond E are stored", "ptr.dtype.element_ty), mask=(offs[:, None] < size) & (offs_e[None, :] < E))", "ptr.dtype.element_ty), mask=(offs[:, None] < size))"),
    ("prototype_attention", "accumulator is not rescaled", "acc * shrink[:, None]", "acc"),
    ("prototype_attention", "sum is not rescaled", "row_sum * shrink + tl.sum", "row_sum + tl.sum"),
    ("prototype_attention", "lse in base e", "row_max + tl.log2(row_sum)", "row_max + tl.log(row_sum)"),
    ("prototype_attention", "dq without scale", "dq * scale, offs_m", "dq, offs_m"),
    ("prototype_attention", "dk without scale", "dk * scale, offs_v", "dk, offs_v"),
    ("prototype_attention", "delta left out of dk", "ds = p * (dp - delta[None, :])", "ds = p * dp"),
    ("prototype_attention", "delta is not stored", "    tl.store(delta_ptr + pid_a * M + offs_m, delta, mask=offs_m < M)\n", ""),
    ("prototype_attention", "key strides swapped", "pid_a * stride_head + offs[:, None].to(tl.int64) * stride_row", "pid_a * stride_row + offs[:, None].to(tl.int64) * stride_head"),
    ("prototype_attention", "offsets in 32 bits", "offs[:, None].to(tl.int64) * stride_row", "offs[:, None] * stride_row"),
    ("prototype_attention", "splits overlap", "first_row = split * rows_per_split", "first_row = split * (rows_per_split // 2)"),
    ("prototype_attention", "splits only over key blocks", "splits = num_splits(q.device, config.waves, blocks_v * A, limit=blocks_m)", "splits = 1"),
    ("alignment_loss", "sum instead of difference", "        -acc,\n", "        acc,\n"),
    ("alignment_loss", "library: text's gradient has the wrong sign", "[-scale for scale in scales]", "scales"),
    ("alignment_loss", "library: parts are not summed", "        if accumulate:\n", "        if False:\n"),
    ("alignment_loss", "columns beyond D count", "in_k = offs_k < K - start", "in_k = offs_k >= 0"),
    ("alignment_loss", "strides of the weights swapped", "offs_f * stride_twf", "offs_f * stride_xwf"),
    ("alignment_loss", "smooth_l1 without its kink", "tl.clamp(d, -1.0, 1.0)", "d"),
    ("alignment_loss", "smooth_l1 without its offset", "tl.abs(d) - 0.5", "tl.abs(d)"),
    ("alignment_loss", "slope beyond F is stored", "mask=in_m[:, None] & in_f[None, :])", "mask=in_m[:, None])"),
    ("alignment_loss", "whole derivative of mse kept in fp16", "        slope = d\n", "        slope = 2 * d\n"),
    ("alignment_loss", "mean over rows only", "inverse_count=1 / (M * F)", "inverse_count=1 / M"),
    ("alignment_loss", "text's gradient without its sign", "dtext * -factor", "dtext * factor"),
    ("alignment_loss", "gradient not scaled by the loss's gradient", "_pick(factors, depth) * tl.load(dloss_ptr)", "_pick(factors, depth)"),
    ("alignment_loss", "parts of the rows are not summed", "if ACCUMULATE:", "if False:"),
    ("alignment_loss", "last rows of a split count twice", "min(start + steps_per_split * BLOCK_K, K)", "min(start + steps_per_split * BLOCK_K + BLOCK_K, K)"),
    ("alignment_loss", "fp32 slope is kept", "if not save or time_weight.dtype == torch.float32:", "if not save:"),
    ("alignment_loss", "every depth reads the first one's features", "value = tl.where(index == i, values[i], value)", "value = values[0]"),
    ("alignment_loss", "every depth reads the first one's weights", "time_weight_ptr + pid_g * stride_twg", "time_weight_ptr"),
    ("alignment_loss", "every depth has the first one's weight in the loss", "tl.sum(rho) * _pick(depth_weights, depth)", "tl.sum(rho) * _pick(depth_weights, 0)"),
    ("alignment_loss", "all depths write the same slopes", "slope_ptr + pid_g * stride_sg", "slope_ptr"),
    ("alignment_loss", "all depths write the same sums", "partial_ptr += depth * tl.num_programs(0) + tl.program_id(0)", "partial_ptr += tl.program_id(0)"),
    ("alignment_loss", "depths beyond a launch are left out", "range(0, depths, DEPTHS_A_LAUNCH)", "range(0, min(depths, DEPTHS_A_LAUNCH), DEPTHS_A_LAUNCH)"),
    ("deep_alignment_loss", "depths of two dtypes are not cast", "len({(both.dtype, both.stride()) for both in features}) > 1", "len({both.stride() for both in features}) > 1"),
    ("deep_alignment_loss", "depths of several layouts are not copied", "len({(both.dtype, both.stride()) for both in features}) > 1", "len({both.dtype for both in features}) > 1"),
    ("twin_norm", "every row counts as temporal", "is_time = row < num_time_rows", "is_time = row >= 0"),
    ("twin_norm", "textual rows' gradient uses the temporal weight", "        weight_ptr = tl.where(is_time, time_weight_ptr, text_weight_ptr)\n        dnormed", "        weight_ptr = time_weight_ptr\n        dnormed"),
    ("twin_norm", "textual rows train the weight", "tl.where(is_time, dy * normed, 0.0)", "dy * normed"),
    ("twin_norm", "textual rows train the bias", "tl.where(is_time, dy, 0.0)", "dy"),
    ("twin_norm", "columns beyond D enter the variance", "tl.where(in_d, x - mean, 0.0)", "x - mean"),
    ("twin_norm", "mean stays in the gradient", "        if LAYER:\n            dx -= tl.sum(dnormed) / D\n", ""),
    ("twin_norm", "gradient along the norm stays", "dnormed - normed * (tl.sum(dnormed * normed) / D)", "dnormed"),
    ("twin_norm", "gradient of the residual stream left out", "dx += tl.load(dsum_ptr", "0 and tl.load(dsum_ptr"),
    ("twin_norm", "norm of the sum before rounding", "x = rounded.to(tl.float32)", "x = x"),
    ("twin_norm", "offset left out of the gradient", "dy * (offset + tl.load", "dy * (tl.load"),
    ("twin_norm", "last rows are left out", "min(first + rows_per_program, M)", "min(first + rows_per_program, M - 1)"),
    ("twin_norm", "all programs write the same partial sums", "tl.program_id(0).to(tl.int64) * stride_split + offs_d", "offs_d"),
    ("twin_norm", "without temporal rows nothing is stored", "(first < num_time_rows) | (first == 0)", "first < num_time_rows"),
    ("forecast_losses", "missing targets count", "tl.where(target == target, rho, 0.0)", "tl.where(mask, rho, 0.0)"),
    ("forecast_losses", "missing targets have a gradient", "tl.where(target == target, slope, 0.0)", "slope"),
    ("forecast_losses", "level left out for one branch", "* scale + loc\n    text", "* scale\n    text"),
    ("forecast_losses", "both branches read the same forecast", "normalised_ptr + textual + offs, mask", "normalised_ptr + offs, mask"),
    ("forecast_losses", "target's strides swapped", "h.to(tl.int64) * stride_th + c.to(tl.int64) * stride_tc", "h.to(tl.int64) * stride_tc + c.to(tl.int64) * stride_th"),
    ("forecast_losses", "smooth_l1 without its offset", "tl.abs(d) - 0.5", "tl.abs(d)"),
    ("forecast_losses", "smooth_l1 without its kink", "tl.where(tl.abs(d) < 1, d, sign)", "d"),
    ("forecast_losses", "half the derivative of mse", "d * d, 2 * d", "d * d, d"),
    ("forecast_losses", "smape of two zeros divides by zero", "tl.where(size == 0, 1.0, size)", "size"),
    ("forecast_losses", "mase without its unit", "sign / unit", "sign"),
    ("forecast_losses", "text's gradient has the wrong sign", "dtext -= apart", "dtext += apart"),
    ("forecast_losses", "consistency without its weight", "consistency_weight * mean_apart", "mean_apart"),
    ("forecast_losses", "gradient of the total left out", "factor += tl.load(total_ptr) * weight", "factor += 0.0"),
    ("forecast_losses", "gradient of the forecasts left out", "dtime += tl.load(grad_ptrs", "0 and tl.load(grad_ptrs"),
    ("forecast_losses", "text uses the gradient of time's forecast", "(b + B) * stride_gb", "b * stride_gb"),
    ("forecast_losses", "gradient without the scale", "(dtext * scale)", "(dtext)"),
    ("forecast_losses", "sum instead of the mean", "num_partials=grid[0], inverse_count=1 / target.numel()", "num_partials=grid[0], inverse_count=1.0"),
    ("_reduce", "only the first split is summed", "        partial_ptr += size\n", ""),
    ("_reduce", "second gradient is not stored", "    tl.store(second_ptr", "    0 and tl.store(second_ptr"),
    ("_launch", "Triton's default precision", '"tf32" if _allows_tf32() else "ieee"', '"tf32"'),
    ("_launch", "LLATA_KERNELS is ignored", "(ENABLED and (x.is_cuda or INTERPRET))", "(x.is_cuda or INTERPRET)"),
]  # fmt: skip


def load_mutant(folder: pathlib.Path) -> None:
    """Make `import llata_fast.kernels` find the package in `folder`, on disk because the interpreter reads sources."""
    import llata_fast

    spec = importlib.util.spec_from_file_location(
        "llata_fast.kernels", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    package = llata_fast.kernels = sys.modules["llata_fast.kernels"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)


def first_failure(folder: pathlib.Path, tests: list[str]) -> str | None:
    """Name of the first test that fails with the package in `folder`, run in a fork of this process."""
    import pytest

    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        output = io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            load_mutant(folder)
            paths = [str(ROOT / "tests" / "kernels" / name) for name in tests]
            code = pytest.main(
                ["-x", "-q", "--no-header", "--tb=no", "-p", "no:cacheprovider", "-p", "no:xdist", *paths]
            )
        failed = re.search(r"^(?:FAILED|ERROR) \S*::(.+?)(?: - |$)", output.getvalue(), re.MULTILINE)
        answer = "" if code == 0 else failed[1] if failed else output.getvalue()[-2000:]
        os.write(writer, answer.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        name = answer.read()
    _, status = os.waitpid(child, 0)
    # a write outside its tensor may crash the process before a test sees it
    return name or (None if status == 0 else "ends the process")


def main(names: list[str]) -> int:
    os.environ["TRITON_INTERPRET"] = "1"
    # load these once here, not in every fork
    for module in ("torch", "triton", "hypothesis", "pytest"):
        importlib.import_module(module)
    os.chdir(ROOT)
    survivors = 0
    print("| file | broken | first test that fails |\n| - | - | - |", flush=True)
    for file, broken, before, after in MUTANTS:
        if names and file not in names and broken not in names:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            folder = pathlib.Path(scratch, "kernels")
            shutil.copytree(ROOT / "kernels", folder, ignore=shutil.ignore_patterns("__pycache__"))
            path = folder / f"{file}.py"
            source = path.read_text()
            assert source.count(before) >= 1, f"{file}: {broken}: the code to replace is gone"
            mutant = source.replace(before, after)
            # what cannot be imported would end the process, too
            compile(mutant, path, "exec")
            path.write_text(mutant)
            test = first_failure(folder, TESTS[file])
        survivors += test is None
        print(f"| {file} | {broken} | {test or '**none**'} |", flush=True)
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
