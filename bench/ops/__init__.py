"""One file per op, by the op's one name; `BENCHES` lists them."""

from bench.ops import (
    depthwise_conv3d,
    depthwise_conv_transpose3d,
    dynamic_relu,
    few_key_attention,
    few_query_attention,
)

BENCHES = {
    module.BENCH.name: module.BENCH
    for module in (
        depthwise_conv3d,
        depthwise_conv_transpose3d,
        few_query_attention,
        few_key_attention,
        dynamic_relu,
    )
}
