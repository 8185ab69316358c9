// What becomes of freed memory.
#pragma once

namespace adanat {

// From now on freed memory stays with the process. Activations come and go hundreds of times an image; given
// back to the system, each would come back as fresh pages that must be filled with zeros first (64 images of
// models/signs: 142000 page faults, 5 % of the processor time). Once, before the first tensor is made.
void keep_freed_memory();

}  // namespace adanat
