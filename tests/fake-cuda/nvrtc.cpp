// A compiler of CUDA units without NVRTC, for tests: it gives the unit to the system's C++ compiler with the shim in front, and makes the shared
// object look like a cubin. The fake driver beside this file takes it back.
//
// SHIM_DIRECTORY, where the shim's headers are, is a macro of the build. CXX names the compiler.
#include <elf.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string>
#include <vector>

namespace {

struct Program {
    std::string text, name, log, cubin;
};

std::string read(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// The names of the unit's kernels: `KERNEL … name(const __grid_constant__ Arguments`.
std::vector<std::string> kernels(const std::string& text) {
    std::vector<std::string> names;
    const std::string parameter = "(const __grid_constant__ Arguments";
    for (size_t at = text.find(parameter); at != std::string::npos; at = text.find(parameter, at + 1)) {
        size_t begin = at;
        while (begin > 0 && (std::isalnum(static_cast<unsigned char>(text[begin - 1])) || text[begin - 1] == '_')) --begin;
        names.push_back(text.substr(begin, at - begin));
    }
    return names;
}

std::string quoted(const std::string& text) { return "'" + text + "'"; }

}  // namespace

extern "C" {

int nvrtcVersion(int* major, int* minor) {
    *major = 13;
    *minor = 0;
    return 0;
}

const char* nvrtcGetErrorString(int status) { return status == 0 ? "NVRTC_SUCCESS" : "NVRTC_ERROR_COMPILATION"; }

int nvrtcCreateProgram(Program** program, const char* text, const char* name, int, const char* const*, const char* const*) {
    *program = new Program{text, name ? name : "unit", "", ""};
    return 0;
}

int nvrtcDestroyProgram(Program** program) {
    delete *program;
    *program = nullptr;
    return 0;
}

int nvrtcCompileProgram(Program* program, int count, const char* const* options) {
    unsigned capability = 0;
    for (int i = 0; i < count; ++i) {
        if (const char* name = std::strstr(options[i], "sm_")) capability = unsigned(std::strtoul(name + 3, nullptr, 10));
    }
    std::string folder = (std::filesystem::temp_directory_path() / "fake-nvrtc-XXXXXX").string();
    if (!mkdtemp(folder.data())) return 6;
    const std::string base = folder + "/unit";
    std::string unit = "unit_" + program->name;
    for (char& c : unit) {
        if (!std::isalnum(static_cast<unsigned char>(c))) c = '_';
    }
    {
        std::ofstream file(base + ".cpp", std::ios::binary);
        file << "#include \"driver.hpp\"\nnamespace " << unit << " {\n#line 1 \"" << program->name << ".cu\"\n" << program->text << "\n}\n";
        for (const std::string& name : kernels(program->text)) file << "SHIM_ENTRY(" << unit << ", " << name << ")\n";
    }
    const char* compiler = std::getenv("CXX");
    const std::string command = std::string(compiler && *compiler ? compiler : "c++") +
                                " " FLAGS " -I " + quoted(SHIM_DIRECTORY) + " -shared -o " + base + ".so " + base + ".cpp 2>" + base + ".log";
    const int status = std::system(command.c_str());
    program->log = read(base + ".log");
    program->cubin = read(base + ".so");
    for (const char* extension : {".cpp", ".so", ".log"}) unlink((base + extension).c_str());
    rmdir(folder.c_str());
    if (status != 0 || program->cubin.size() < sizeof(Elf64_Ehdr)) return 6;
    for (const std::string& name : kernels(program->text)) {
        program->log += "ptxas info    : Compiling entry function '" + name + "' for 'sm_" + std::to_string(capability) +
                        "'\nptxas info    : Function properties for " + name +
                        "\n    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\nptxas info    : Used 32 registers, used 1 barriers\n";
    }
    Elf64_Ehdr header;
    std::memcpy(&header, program->cubin.data(), sizeof header);
    header.e_machine = 190;
    header.e_flags = capability << 8;
    header.e_ident[EI_ABIVERSION] = 8;
    std::memcpy(program->cubin.data(), &header, sizeof header);
    return 0;
}

int nvrtcGetProgramLogSize(Program* program, size_t* bytes) {
    *bytes = program->log.size() + 1;
    return 0;
}

int nvrtcGetProgramLog(Program* program, char* log) {
    std::memcpy(log, program->log.c_str(), program->log.size() + 1);
    return 0;
}

int nvrtcGetCUBINSize(Program* program, size_t* bytes) {
    *bytes = program->cubin.size();
    return 0;
}

int nvrtcGetCUBIN(Program* program, char* cubin) {
    std::memcpy(cubin, program->cubin.data(), program->cubin.size());
    return 0;
}

}  // extern "C"
