"""One outside thing each: chain, state repository, object store, CDNs, renderer, embedder, judge, builds, pods.

Each has an embedded and a real form behind one protocol; `configured` makes Dagster resources of them. No rule of the
competition lives here.
"""
