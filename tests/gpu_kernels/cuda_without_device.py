"""The CUDA kernels where there is no device, each command in a process of its own, which the tests start.

simulate IN OUT: under Numba's simulator. IN holds, pickled, {name: (model, views)}; OUT gets {name: [picture, ...]}, or
the reason for a name that ends in "refused", which is drawn with limits of 0.
lower: to PTX for their real argument types, which finds what the simulator does not: types. Prints, as JSON,
{kernel: {"constant": bytes, "shared": bytes, "unresolved": functions that libdevice must have}}.
"""

import json
import pickle
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np


def simulate(source: Path, target: Path) -> None:
    from gpu_kernels.cuda import mesh, splats
    from gpu_kernels.errors import UnreadableModel
    from gpu_kernels.splats import Splats

    def draw(model: Any, views: Any, pictures: Any) -> None:
        if isinstance(model, Splats):
            splats.draw_splats(model, views, pictures)
        else:
            mesh.draw_scene(*model, views, pictures)

    drawn: dict[str, Any] = {}
    limits = mesh.MAX_WORK, mesh.MAX_PAIRS, splats.MAX_WORK
    for name, (model, views) in pickle.loads(source.read_bytes()).items():
        # Each in the middle of something larger: a part of a grid is strided, and nothing may be written around it.
        grids = [np.full((view.size + 2, view.size + 3, 3), 7, np.uint8) for view in views]
        pictures = [grid[1:-1, 1:-2] for grid in grids]
        if name.endswith("refused"):
            mesh.MAX_WORK = mesh.MAX_PAIRS = splats.MAX_WORK = 0
            try:
                draw(model, views, pictures)
            except UnreadableModel as error:
                drawn[name] = str(error)
            mesh.MAX_WORK, mesh.MAX_PAIRS, splats.MAX_WORK = limits
            continue
        draw(model, views, pictures)
        drawn[name] = [picture.copy() for picture in pictures]
        for grid, picture in zip(grids, pictures, strict=True):
            picture[:] = 7
            assert (grid == 7).all(), f"{name}: written outside of its part of the grid"
    target.write_bytes(pickle.dumps(drawn))


def lower() -> None:
    import llvmlite.binding as llvm
    from numba import float32, float64, int32, int64, types, uint8, uint32, uint64
    from numba.cuda.compiler import compile_cuda

    from gpu_kernels.cuda import mesh, resolve, sort, splats
    from gpu_kernels.formulas.mesh import Scene

    do_without_the_toolkit()

    def array(dtype: types.Type, dimensions: int) -> types.Array:
        return types.Array(dtype, dimensions, "C")

    points, triangles, views = array(float32, 2), array(uint32, 2), array(float64, 2)
    screen, samples, counts = array(float32, 3), array(uint8, 4), array(int32, 2)
    scene = types.NamedTuple(
        [points, triangles, *[points] * 3, array(float32, 1), int64, *[array(uint32, 2)] * 5], Scene
    )
    nearest, keys, listed, ranges = array(uint64, 3), array(int64, 1), array(int32, 1), array(int64, 2)
    kernels: list[tuple[Any, list[types.Type]]] = [
        (mesh.project_vertices, [points, views, screen]),
        (mesh.clear, [array(uint64, 1)]),
        (mesh.draw_small_triangles, [screen, triangles, nearest, counts, array(int32, 1), array(uint64, 1)]),
        (mesh.draw_large_triangles, [screen, triangles, nearest, counts, array(int32, 1)]),
        (mesh.shade_nearest, [screen, views, nearest, samples, scene]),
        (mesh.count_tiles, [screen, triangles, int64, counts]),
        (mesh.list_tiles, [screen, triangles, int64, int64, counts, array(int64, 2), keys, listed]),
        (mesh.blend, [screen, views, ranges, listed, samples, scene]),
        (resolve.halve, [samples, array(int32, 2), samples]),
        (sort.find_ranges, [keys, int64, ranges]),
        (
            splats.project_splats,
            [*[points] * 3, array(float32, 1), array(float64, 1), views, screen, array(int64, 2), counts],
        ),
        (splats.list_tiles, [screen, array(int64, 2), counts, array(int64, 2), int64, float64, keys, listed]),
        (splats.composite, [screen, points, ranges, listed, samples]),
    ]
    machine = llvm.Target.from_triple("nvptx64-nvidia-cuda").create_target_machine(cpu="sm_90", opt=3)
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3))
    found = {}
    for kernel, arguments in kernels:
        compiled = compile_cuda(kernel.py_func, types.void, tuple(arguments), cc=(9, 0), nvvm_options={})
        library, entry = compiled.target_context.prepare_cuda_kernel(
            compiled.library, compiled.fndesc, False, False, {}, "", 1
        )
        whole, *parts = [llvm.parse_assembly(str(module)) for module in library.modules]
        for part in parts:
            whole.link_in(part)
        whole.verify()
        builder.getModulePassManager().run(whole, builder)
        ptx = machine.emit_assembly(whole)
        assert f".entry {entry.name}" in ptx
        found[f"{kernel.py_func.__module__}.{kernel.py_func.__name__}"] = {
            space: sum(int(size) for size in re.findall(rf"\.{name} \.align .*?\[(\d+)\]", ptx))
            for space, name in (("constant", "const"), ("shared", "shared"))
        } | {"unresolved": sorted(set(re.findall(r"\.extern \.func[^\n]*?\b(\w+)\s*$", ptx, re.MULTILINE)))}
    print(json.dumps(found))


def do_without_the_toolkit() -> None:
    """Stand in for what the compiler asks of libnvvm and the device before it comes to them: a memory layout, an sm.

    The kernels themselves go through the real compiler as far as it goes without NVIDIA's parts.
    """
    import llvmlite.binding as llvm
    from numba.core import types, typing, utils
    from numba.cuda import dispatcher
    from numba.cuda.cudadrv import nvvm

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    nvvm.NVVM = lambda: SimpleNamespace(data_layout=nvvm._datalayout_i128, get_ir_version=lambda: (2, 0, 3, 1))
    dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=(9, 0))

    # Since 0.66 the CUDA target inside Numba does not compile min() and max(), whose overloads take *args
    # (https://github.com/numba/numba/issues/10753); numba-cuda, which takes its place beside a device, does.
    plain = dispatcher.CUDADispatcher.get_call_template

    def get_call_template(self: Any, args: Any, kws: Any) -> Any:
        signature = utils.pysignature(self.py_func)
        if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in signature.parameters.values()):
            folded = typing.fold_arguments(
                signature,
                args,
                kws,
                lambda index, parameter, value: value,
                lambda index, parameter, default: types.Omitted(default),
                lambda index, parameter, values: types.StarArgTuple(values),
            )
            return plain(self, folded, {})
        return plain(self, args, kws)

    dispatcher.CUDADispatcher.get_call_template = get_call_template


if __name__ == "__main__":
    if sys.argv[1] == "simulate":
        simulate(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        lower()
