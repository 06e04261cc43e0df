// matmul and grouped_matmul in bf16 or f16 with parts that are wider than a tile: see the files.
#pragma once

#include "sm80_bf16_matmul.cuh"
#include "matmul/wide.cuh"
