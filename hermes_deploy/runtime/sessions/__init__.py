"""Engines behind `runtime.session.Session`, each opened by `serving.sessions`.

`ort_cpu` maps rows of the cache side by side. GPU engines share `row_session`, which moves rows on the device
(`row_layout` decides, `row_memory` does) and cuts calls into runs (`row_steps`); `ort_cuda` and `tensorrt` are
the two engines under it.
"""
