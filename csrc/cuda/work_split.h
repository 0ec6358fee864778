// How the wide products share out their work: every block takes an equal run of steps.
//
// The steps of a group (some rows times some tokens) follow each other, groups follow each other,
// and block b of B takes steps floor(b S / B) to floor((b + 1) S / B) of all S. So a run starts and
// ends inside a group, and a group that is cut belongs to blocks that follow each other.
#pragma once

#include <cstdint>

#include "core/platform.h"

namespace pvq {

struct WorkSplit {
  int64_t steps;  // of all groups, at least `blocks`
  int group_steps, blocks;

  PVQ_HD int64_t first_step(int block) const { return block * steps / blocks; }
  // The block that takes the last step of a group.
  PVQ_HD int last_block(int64_t group) const {
    return int(((group + 1) * group_steps * blocks - 1) / steps);
  }
};

}  // namespace pvq
