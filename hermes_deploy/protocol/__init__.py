"""What travels between a client and the Triton models: tensor table and generated stubs.

At the bottom of the house, standard library plus protobuf only: the client, the repository
writer and the models all read the same table.
"""
