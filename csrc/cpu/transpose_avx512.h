// A transposition of 16 x 16 int32 for AVX-512. Included inside the anonymous namespace of a file
// that defines PVQ_INLINE, as the loops of this directory are.

// rows[lane] holds 16 int32, out[q] becomes int32 q of every lane.
PVQ_INLINE void transpose(const __m512i (&rows)[16], __m512i (&out)[16]) {
  __m512i a[16], b[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
    a[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    b[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
    b[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
    b[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
    b[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
  }
  // Lane p of b[4 k + j] holds int32 4 p + j of rows 4 k to 4 k + 3.
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512i even0 = _mm512_shuffle_i32x4(b[j], b[4 + j], 0x88);
    const __m512i odd0 = _mm512_shuffle_i32x4(b[j], b[4 + j], 0xDD);
    const __m512i even1 = _mm512_shuffle_i32x4(b[8 + j], b[12 + j], 0x88);
    const __m512i odd1 = _mm512_shuffle_i32x4(b[8 + j], b[12 + j], 0xDD);
    out[j] = _mm512_shuffle_i32x4(even0, even1, 0x88);
    out[4 + j] = _mm512_shuffle_i32x4(odd0, odd1, 0x88);
    out[8 + j] = _mm512_shuffle_i32x4(even0, even1, 0xDD);
    out[12 + j] = _mm512_shuffle_i32x4(odd0, odd1, 0xDD);
  }
}
