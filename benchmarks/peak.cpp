// The float32 peak of this machine: independent chains of fused multiply-adds that never leave the registers.
//
//     g++ -O3 -march=native -pthread benchmarks/peak.cpp -o peak && ./peak 2
//
// prints one JSON object, the best GFLOP/s of several tries by number of threads, from 1 to the one given.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#if defined(__AVX512F__)
constexpr int WIDTH = 16;
#elif defined(__AVX__)
constexpr int WIDTH = 8;
#else
constexpr int WIDTH = 4;
#endif
typedef float Vector __attribute__((vector_size(WIDTH * 4)));

constexpr int CHAINS = 12;  // two units with a latency of four cycles keep eight busy
constexpr long REPEATS = 5'000'000;
volatile float unknown;  // to the compiler: it would compute a chain that starts from a constant beforehand

// Named variables: compilers keep an array of vectors in memory.
static void chains() {
    Vector factor = Vector{} + 0.999f, term = Vector{} + 0.001f;
    Vector a = Vector{} + unknown, b = a + 1, c = a + 2, d = a + 3, e = a + 4, f = a + 5;
    Vector g = a + 6, h = a + 7, i = a + 8, j = a + 9, k = a + 10, l = a + 11;
    for (long n = 0; n < REPEATS; n++) {
        a = a * factor + term, b = b * factor + term, c = c * factor + term, d = d * factor + term;
        e = e * factor + term, f = f * factor + term, g = g * factor + term, h = h * factor + term;
        i = i * factor + term, j = j * factor + term, k = k * factor + term, l = l * factor + term;
    }
    Vector sum = a + b + c + d + e + f + g + h + i + j + k + l;
    unknown = sum[0];
}

static double gflops(int threads) {
    using Clock = std::chrono::steady_clock;
    auto began = Clock::now();
    std::vector<std::thread> team;
    for (int n = 0; n < threads; n++) team.emplace_back(chains);
    for (auto& one : team) one.join();
    double seconds = std::chrono::duration<double>(Clock::now() - began).count();
    return 2.0 * WIDTH * CHAINS * REPEATS * threads / seconds / 1e9;
}

int main(int argc, char** argv) {
    int most = argc > 1 ? std::atoi(argv[1]) : 1;
    for (int threads = 1; threads <= most; threads++) {
        double best = 0;
        for (int tries = 0; tries < 7; tries++) best = std::max(best, gflops(threads));
        std::printf("%s\"%d\": %.1f", threads == 1 ? "{" : ", ", threads, best);
    }
    std::printf("}\n");
}
