// Nothing: a target needs a source, and this one only has the precompiled header (CMakeLists.txt,
// ADANAT_PCH).
