"""What the workloads are measured on.

`contenders` lists the layers, `byhand` holds queues, sockets and bare FIFOs in the shape of a
layer, and `redis_server` starts a server for those that need one. `contracts` makes one of the two
contracts, and `stage` opens layers in processes of their own.
"""
