// Shares of work as the kernels find them (csrc/cuda/work_split.h), for tests/test_work_split.py:
//   divide           pairs "n d" from standard input, a quotient a line
//   share S B G      the first steps of B blocks of S steps and the end; then for each block the one
//                    that has the end of its last group of G steps
#include "cuda/work_split.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

int main(int argc, char** argv) {
  if (argc > 1 && !std::strcmp(argv[1], "divide")) {
    for (int n, d; std::scanf("%d %d", &n, &d) == 2;)
      std::printf("%d\n", pvq::Divisor(d).quotient(n));
    return 0;
  }
  const long steps = std::atol(argv[2]);
  const int blocks = std::atoi(argv[3]), group_steps = std::atoi(argv[4]);
  const pvq::WorkSplit split(steps, blocks);
  for (int b = 0; b <= blocks; ++b) std::printf("%d ", split.first_step(b));
  std::printf("\n");
  for (int b = 0; b < blocks; ++b) {
    const int end = split.first_step(b + 1);
    const int group = pvq::Divisor(group_steps).quotient(end - 1);
    std::printf("%d ", split.block_until(b, (group + 1) * group_steps));
  }
  std::printf("\n");
}
