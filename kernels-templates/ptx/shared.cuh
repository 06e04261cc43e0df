// Addresses of shared memory as PTX instructions take them: 32 bits wide. Offsets in bytes are added as numbers.
#pragma once

#ifndef NUCLEUS_SHIM
typedef u32 SharedAddress;
DEVICE SharedAddress shared_address(const void* p) { return u32(__cvta_generic_to_shared(p)); }
#else
typedef unsigned char* SharedAddress;
DEVICE SharedAddress shared_address(void* p) { return static_cast<unsigned char*>(p); }
#endif
