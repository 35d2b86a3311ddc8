// Compiles the code between BEGIN and END for an instruction set, whatever the file is compiled
// for. Headers of the standard library and of torch must come before, because their definitions are
// shared.
#pragma once

#define SPARSEDET_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define SPARSEDET_BEGIN_TARGET(set) \
  SPARSEDET_PRAGMA(clang attribute push(__attribute__((target(set))), apply_to = function))
#define SPARSEDET_END_TARGET SPARSEDET_PRAGMA(clang attribute pop)
#else
#define SPARSEDET_BEGIN_TARGET(set) \
  SPARSEDET_PRAGMA(GCC push_options) SPARSEDET_PRAGMA(GCC target(set))
#define SPARSEDET_END_TARGET SPARSEDET_PRAGMA(GCC pop_options)
#endif
