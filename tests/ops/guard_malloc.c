// Replaces posix_memalign and aligned_alloc, from which tensors and workspaces come. Between
// guard_edge(1 or 2) and guard_edge(0) each block lies on pages of its own, next to an unmapped
// page: 1: its end touches the page behind, 2: its begin the page before. It is filled with 0xff
// (NaN in every floating dtype) and never used again once freed, so that reading it late faults too.
#define _GNU_SOURCE
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

extern void __libc_free(void*);
extern void* __libc_memalign(size_t, size_t);

enum { kPage = 4096 };
static const size_t kArena = (size_t)1 << 38;  // addresses only

static char* arena;
static size_t used;
static int edge;

void guard_edge(int wanted) {
  if (arena == NULL) {
    arena = mmap(NULL, kArena, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (arena == MAP_FAILED) abort();
  }
  edge = wanted;
}

static void* guarded(size_t bytes) {
  if (bytes == 0) bytes = 1;
  size_t body = (bytes + kPage - 1) / kPage * kPage;
  size_t whole = body + 2 * kPage;
  size_t at = __atomic_fetch_add(&used, whole, __ATOMIC_RELAXED);
  if (at + whole > kArena) return NULL;
  char* first = arena + at + kPage;
  if (mprotect(first, body, PROT_READ | PROT_WRITE) != 0) return NULL;
  memset(first, 0xff, body);
  return edge == 1 ? first + body - bytes : first;
}

int posix_memalign(void** out, size_t alignment, size_t bytes) {
  *out = edge ? guarded(bytes) : __libc_memalign(alignment, bytes);
  return *out == NULL ? ENOMEM : 0;
}

void* aligned_alloc(size_t alignment, size_t bytes) {
  return edge ? guarded(bytes) : __libc_memalign(alignment, bytes);
}

void free(void* pointer) {
  char* p = pointer;
  if (arena == NULL || p < arena || p >= arena + kArena) {
    __libc_free(pointer);
    return;
  }
  char* page = (char*)((uintptr_t)p / kPage * kPage);
  // Its length is not known, its first page is: later reads begin there, too.
  mprotect(page, kPage, PROT_NONE);
  madvise(page, kPage, MADV_DONTNEED);
}
