// Which tile of a contraction a block computes.
//
// Tiles of GROUP_ROWS rows of tiles are visited column by column, so that the blocks that run at a time share rows of the left and columns
// of the right factor in the second cache: W neighbouring blocks read GROUP_ROWS tiles of one and W / GROUP_ROWS of the other.
//
// Slots: int row_tiles(args), int column_tiles(args): those of all parts side by side; int part_of(args, int& column_tile): the part of a column
// tile, whose number it makes that within the part.
// Constants: GROUP_ROWS.
#pragma once

struct TilePlace {
    int batch, part, row, column;
};

DEVICE TilePlace tile_place(const Arguments& args, u32 block) {
    const u32 rows = u32(row_tiles(args)), columns = u32(column_tiles(args));
    const u32 in_batch = block % (rows * columns);
    const u32 first = in_batch / (GROUP_ROWS * columns) * GROUP_ROWS;
    const u32 in_group = in_batch - first * columns;
    const u32 height = rows - first < u32(GROUP_ROWS) ? rows - first : u32(GROUP_ROWS);
    int column = int(in_group / height);
    const int part = part_of(args, column);
    return {int(block / (rows * columns)), part, int(first + in_group % height), column};
}
