"""One case per path that a kernel of `depthwise_conv3d` may have; the name says which."""

from tests.ops.conv_cases import Case

_KERNELS = [
    Case(f"kernel_{t}x{h}x{w}", (6, 7, 11), (t, h, w), padding=(t // 2, h // 2, w // 2))
    for t, h, w in [
        *[(3, 3, 3), (1, 3, 3), (3, 1, 1), (5, 3, 3), (1, 5, 5), (5, 1, 1), (5, 5, 5), (7, 7, 7)],
        *[(3, 5, 5), (2, 2, 2), (4, 1, 3), (1, 1, 1), (3, 3, 1), (9, 1, 1), (1, 1, 9), (1, 9, 1)],
        *[(1, 1, 2), (1, 1, 4), (1, 1, 6), (1, 1, 8), (1, 1, 16), (3, 3, 7), (2, 6, 4)],
    ]
]

_STRIDES = [
    Case(f"stride_{t}{h}{w}_kernel_{k}", (7, 8, 13), (k, k, k), 3, stride=(t, h, w))
    for k in (3, 5)
    for t, h, w in [
        *[(1, 2, 2), (2, 2, 2), (2, 1, 1), (1, 2, 1), (1, 1, 2), (3, 1, 1), (1, 3, 1), (1, 1, 3)],
        *[(3, 3, 3), (1, 2, 3), (3, 2, 1)],
    ]
] + [
    Case("stride_beyond_the_kernel", (7, 9, 17), (2, 2, 2), stride=(4, 5, 6), padding=(0, 0, 0)),
    Case("stride_beyond_the_input", (3, 3, 3), stride=(9, 9, 9)),
    Case("stride_4_kernel_1", (5, 9, 9), (1, 1, 1), stride=(4, 4, 4), padding=(0, 0, 0)),
    Case("stride_2_reads_odd_columns_only", (2, 2, 9), (1, 1, 1), stride=(1, 1, 2)),
    Case("stride_leaves_the_last_columns_unread", (5, 8, 12), stride=(2, 2, 2), padding="valid"),
]

_DILATIONS = [
    Case(f"dilation_{t}{h}{w}", (8, 9, 14), dilation=(t, h, w), padding=(t, h, w))
    for t, h, w in [(2, 1, 1), (1, 2, 1), (1, 1, 2), (3, 1, 1), (1, 3, 1), (1, 1, 3), (2, 3, 2)]
] + [
    Case("dilation_and_stride_share_a_factor", (6, 8, 14), stride=(2, 2, 2), dilation=(2, 2, 2)),
    Case("dilation_3_stride_2", (6, 9, 16), stride=(2, 2, 2), dilation=(3, 3, 3), padding=(3,) * 3),
    Case("dilation_2_stride_3", (6, 9, 16), stride=(3, 3, 3), dilation=(2, 2, 2), padding=(2,) * 3),
    Case("dilation_beyond_the_input", (2, 3, 4), dilation=(5, 5, 5), padding=(5, 5, 5)),
]

_MULTIPLIERS = [
    Case(f"multiplier_{m}_of_{c}_channels", (3, 4, 9), channels=c, multiplier=m)
    for m, c in [(2, 1), (2, 3), (2, 8), (3, 5), (3, 6), (4, 1), (4, 4), (6, 3), (2, 17), (16, 2)]
] + [
    # The input gradient transposes squares of repeated channels, as many lanes as they have.
    Case("multiplier_7_fills_squares", (3, 4, 9), channels=16, multiplier=7),
    Case("multiplier_18_needs_several_squares", (2, 4, 9), channels=17, multiplier=18),
    Case("multiplier_40_of_1_channel", (3, 4, 5), channels=1, multiplier=40),
    Case("multiplier_3_stride_2", (4, 5, 9), channels=4, multiplier=3, stride=(1, 2, 2)),
    Case("multiplier_2_dilation_2", (4, 5, 9), multiplier=2, dilation=(1, 2, 2), padding=(1, 2, 2)),
]

_PADDINGS = [
    Case("padding_none", (5, 6, 7), padding="valid"),
    Case("padding_same", (5, 6, 7), padding="same"),
    Case("padding_same_of_an_even_kernel", (5, 6, 7), (2, 4, 2), padding="same"),
    Case("padding_same_dilated", (5, 6, 9), (2, 3, 4), dilation=(3, 2, 1), padding="same"),
    Case("padding_causal", (5, 6, 7), padding=((2, 0), (1, 1), (1, 1))),
    Case("padding_causal_5", (5, 6, 7), (5, 3, 3), padding=((4, 0), (1, 1), (1, 1))),
    Case("padding_causal_strided", (5, 6, 7), stride=(2, 2, 2), padding=((2, 0), (1, 1), (1, 1))),
    Case("padding_before_only", (4, 5, 6), padding=((2, 0), (2, 0), (2, 0))),
    Case("padding_after_only", (4, 5, 6), padding=((0, 2), (0, 2), (0, 2))),
    Case("padding_unequal_everywhere", (4, 5, 6), padding=((0, 1), (2, 0), (3, 1))),
    Case("padding_beyond_the_kernel", (3, 4, 5), padding=(4, 5, 6)),
    Case("padding_beyond_the_kernel_strided", (3, 4, 5), padding=(4, 5, 6), stride=(2, 3, 2)),
    Case("padding_of_a_1x1x1_kernel", (2, 3, 4), (1, 1, 1), padding=(1, 2, 3)),
    Case("padding_wider_than_a_vector", (2, 2, 3), padding=((1, 1), (1, 1), (20, 37))),
    Case("padding_alone_makes_whole_frames", (1, 2, 2), (1, 1, 1), padding=(3, 0, 0)),
    Case("padding_read_alone_by_strides", (1, 1, 1), (1, 1, 1), padding=(2, 2, 2), stride=(4,) * 3),
]

_CHANNELS = [
    Case(f"channels_{c}", (3, 4, 5), channels=c)
    for c in (1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 24, 31, 32, 33, 47, 48, 49, 54, 65, 108)
] + [
    Case(f"channels_{c}_in_one_sample", (3, 4, 9), channels=c, batch=1) for c in (1, 7, 16, 17, 33)
]

_WIDTHS = [
    Case(f"width_{w}_kernel_{k}", (2, 3, w), (1, k, k), 3, padding=(0, k // 2, k // 2))
    for k in (3, 5)
    for w in (1, 2, 3, 5, 6, 7, 8, 10, 11, 12, 13, 14, 16, 21, 27, 31, 33, 64, 65)
] + [
    Case(f"width_{w}_stride_2", (2, 3, w), channels=3, stride=(1, 1, 2)) for w in (1, 7, 13, 28, 31)
]

_SIZES = [
    Case("size_1x1x1", (1, 1, 1)),
    Case("size_1x1x1_kernel_7", (1, 1, 1), (7, 7, 7), padding=(3, 3, 3)),
    Case("height_1", (3, 1, 9)),
    Case("width_1", (3, 9, 1)),
    Case("frames_1", (1, 5, 6)),
    Case("frames_1_causal_kernel_5", (1, 5, 6), (5, 3, 3), padding=((4, 0), (1, 1), (1, 1))),
    Case("frames_below_the_kernel", (2, 5, 6), (5, 3, 3), padding=(2, 1, 1)),
    Case("all_below_the_kernel", (2, 3, 4), (7, 7, 7), padding=(3, 3, 3)),
    Case("frames_many", (40, 2, 3)),
    Case("height_many", (2, 70, 3), channels=2),
    Case("rows_7x7_of_many_channels", (4, 7, 7), channels=40),
    Case("one_output", (3, 3, 3), padding="valid"),
    Case("one_output_of_one_channel", (3, 3, 3), padding="valid", channels=1, batch=1),
    Case("one_output_kernel_5x3x7", (5, 3, 7), (5, 3, 7), padding="valid"),
    Case("one_output_column", (4, 5, 3), padding=(1, 1, 0)),
    Case("batch_1", (3, 4, 5), batch=1),
    Case("batch_9_of_3_channels", (2, 3, 4), channels=3, batch=9),
    Case("batch_0", (3, 4, 5), batch=0),
    Case("bias_none", (3, 4, 5), bias=False),
    Case("taps_many", (11, 11, 11), (11, 11, 11), 2, padding=(5, 5, 5), batch=1),
    Case("larger_than_the_cache", (9, 40, 41), channels=18, batch=1),
]

# Rows of channels-last tensors that kernels may read where they lie, by whole vectors.
_IN_PLACE = (
    [
        Case(f"in_place_kernel_width_{k}", (2, 4, 9), (2, 3, k), 24, padding=(1, 1, k // 2))
        for k in (1, 2, 3, 4, 5, 6, 7, 9)
    ]
    + [
        Case(f"in_place_width_{w}_of_three_vectors_and_a_tail", (2, 3, w), channels=50, batch=1)
        for w in (1, 2, 3, 4, 5, 7, 8, 14, 17, 29)
    ]
    + [
        Case(
            f"in_place_stride_2_kernel_width_{k}",
            *((3, 5, 13), (3, 3, k), 40),
            stride=(1, 2, 2),
            padding=(1, 1, k // 2),
        )
        for k in (1, 3, 5, 7)
    ]
    + [
        Case("in_place_row_below_the_kernel", (2, 3, 2), (1, 3, 7), 32, padding=(0, 1, 3)),
        Case("in_place_padding_before", (2, 3, 9), channels=32, padding=((1, 1), (1, 1), (2, 0))),
        Case("in_place_padding_after", (2, 3, 9), channels=32, padding=((1, 1), (1, 1), (0, 2))),
        Case(
            "in_place_stride_leaves_columns",
            (2, 3, 12),
            (1, 1, 1),
            32,
            stride=(1, 1, 5),
            padding="valid",
        ),
        Case("in_place_dilated_frames_and_rows", (4, 5, 9), channels=32, dilation=(2, 2, 1)),
        Case(
            "in_place_dilated_columns", (4, 5, 9), channels=32, dilation=(1, 1, 2), padding="valid"
        ),
        Case("packed_columns_dilated_and_padded", (2, 3, 9), channels=32, dilation=(1, 1, 2)),
        Case("packed_padding_beyond_the_kernel", (2, 3, 9), channels=32, padding=(1, 1, 3)),
        Case("in_place_channels_in_groups", (3, 8, 64), (3, 3, 3), 330, batch=1),
    ]
)

# ... where several lanes of a vector read the same channel.
_SHARED = (
    [
        Case(f"shared_multiplier_{m}_of_{c}_channels", (3, 4, 9), channels=c, multiplier=m)
        for m, c in [(2, 16), (2, 19), (3, 17), (4, 12), (5, 24), (6, 33), (9, 16), (33, 16)]
    ]
    + [
        Case(
            f"shared_kernel_width_{k}",
            *((2, 4, 9), (2, 3, k), 18),
            multiplier=3,
            padding=(1, 1, k // 2),
        )
        for k in (1, 2, 3, 4, 5, 6, 7)
    ]
    + [
        Case(
            f"shared_stride_2_kernel_width_{k}",
            *((3, 5, 13), (3, 3, k), 21),
            multiplier=6,
            stride=(1, 2, 2),
            padding=(1, 1, k // 2),
        )
        for k in (1, 3, 5, 7)
    ]
    + [
        Case(f"shared_width_{w}", (2, 3, w), channels=25, multiplier=2, batch=1)
        for w in (1, 2, 3, 7, 14, 29)
    ]
    + [
        Case("shared_along_t", (5, 4, 9), (3, 1, 1), 20, multiplier=3, padding=(1, 0, 0)),
        Case("shared_columns_far_apart", (2, 3, 20), channels=128, multiplier=2, batch=1),
    ]
)

# More samples than the kernels cut a pass into items.
_SAMPLES = [
    Case(f"samples_40_kernel_{t}x{h}x{w}", (3, 2, 2), (t, h, w), c, batch=40, padding="same")
    for c in (8, 32)
    for t, h, w in [(3, 1, 1), (1, 3, 3), (3, 3, 3)]
]

HOSTILE = [
    *_KERNELS,
    *_STRIDES,
    *_DILATIONS,
    *_MULTIPLIERS,
    *_PADDINGS,
    *_CHANNELS,
    *_WIDTHS,
    *_SIZES,
    *_IN_PLACE,
    *_SHARED,
    *_SAMPLES,
]
