"""The embedded world: a chain that can be fast-forwarded, miners, their CDNs and images, in one process of its own.

Belongs here: everything outside the pipeline, made up. What happens is a pure function of (seed, parameters, block);
the block itself is one atomic file. The public door is `simulation.launch`.
Does not: any part of the pipeline. It reaches the world over HTTP like any other outside thing; nothing but the
command line and tests imports this package.
"""
