// Who has the threads of the calling thread: torch's own functions or the kernels. No torch header:
// module.cpp includes this file.
#pragma once

namespace mmga {

// Gives the threads to the kernels alone, until release_threads(): torch's functions that the
// calling thread calls take one. Both return false where nothing changed.
bool hold_threads();
bool release_threads();

}  // namespace mmga
