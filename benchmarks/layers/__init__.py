"""Channel layers measured alike, whatever they are made of: `python -m benchmarks.layers`.

`contenders` lists the layers and the two contracts they follow; `floors` are bare FIFOs in the
shape of a layer. Each workload is a module: `pair` (with `backlog`), `roundtrip`, `throughput`,
`idle`.

A workload writes its loop twice, once for each contract, in the words of that contract. An adapter
between the loop and the layer would be paid for by every call, and not equally: a coroutine around
a blocking call is a price that only one side would pay.
"""
