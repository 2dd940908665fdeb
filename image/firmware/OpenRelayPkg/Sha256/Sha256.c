/** @file
  mbed TLS with nothing but SHA-256 (and SHA-224, which belongs to it there): its configuration, its source, and how it wipes memory.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include <Base.h>
#include <Library/BaseMemoryLib.h>

// Any header that is there already: this file is the configuration.
#define MBEDTLS_CONFIG_FILE  <Base.h>
#define MBEDTLS_SHA224_C
#define MBEDTLS_SHA256_C
#define MBEDTLS_PLATFORM_ZEROIZE_ALT
#include <library/sha256.c>

void
mbedtls_platform_zeroize (
  void    *Buffer,
  size_t  Length
  )
{
  ZeroMem (Buffer, Length);
}
