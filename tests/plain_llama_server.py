"""llama-server as the wheel carries it, with nothing of ours around it: `python plain_llama_server.py MODEL CTX [off]`.

`off` is of flash attention. Prints its address, and ends with its stdin.
"""

import sys

import xllamacpp


def main() -> None:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = sys.argv[1]
    parameters.hostnames, parameters.port = ["127.0.0.1"], 0
    parameters.n_ctx, parameters.n_parallel = int(sys.argv[2]), 1
    # As a likelihood is asked for everywhere here; what it finds does not depend on it.
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 2
    if sys.argv[3:] == ["off"]:
        parameters.flash_attn_type = 0
    server = xllamacpp.Server(parameters)
    print(server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
