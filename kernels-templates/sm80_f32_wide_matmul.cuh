// matmul and grouped_matmul in f32 with parts that are wider than a tile: see the files.
#pragma once

#include "sm80_f32_matmul.cuh"
#include "matmul/wide.cuh"
