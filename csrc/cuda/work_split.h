// How the wide products share out their work: every block takes an equal run of steps.
//
// The steps of a group (256 rows times some tokens) follow each other, groups follow each other,
// and block b of B takes steps floor(b S / B) to floor((b + 1) S / B) of all S. So a run starts and
// ends inside a group, and a group that is cut belongs to blocks that follow each other. Each of
// them leaves its partial sums in a slot; a block cuts at most two groups, its first and its last.
#pragma once

#include <cstdint>

#include "core/platform.h"

namespace pvq {

struct WorkSplit {
  int64_t steps;  // of all groups, at least `blocks`
  int group_steps, blocks;

  PVQ_HD int64_t first_step(int block) const { return block * steps / blocks; }
  // The block that takes a step.
  PVQ_HD int block_of(int64_t step) const { return int(((step + 1) * blocks - 1) / steps); }

  PVQ_HD int first_block(int64_t group) const { return block_of(group * group_steps); }
  PVQ_HD int last_block(int64_t group) const { return block_of((group + 1) * group_steps - 1); }
  // Where a block of a cut group leaves its sums, of its own slots: 0 if it begins with the group,
  // else 1.
  PVQ_HD int slot(int block, int64_t group) const {
    return first_step(block) / group_steps == group ? 0 : 1;
  }
};

}  // namespace pvq
