/** @file
  What the parts of the boot driver offer each other. Whatever does not go as it must ends in Halt.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#ifndef OPENRELAY_BOOT_H_
#define OPENRELAY_BOOT_H_

#include <PiDxe.h>

/// Processors of the largest machine that images are measured for. Larger machines do not start.
#define MAX_PROCESSORS  8

/// A part of what is started, in memory that the host cannot change.
typedef struct {
  UINT8     *Data;
  UINT32    Size;
} PART;

typedef struct {
  PART    Kernel;
  PART    Initrd;
  PART    CommandLine;   ///< With one zero byte, its last.
} PARTS;

/// Stops this processor for good.
VOID
Halt (
  VOID
  );

/// Halts unless a condition holds.
VOID
Require (
  IN BOOLEAN  Condition
  );

/// Reads all parts into memory and compares their SHA-256 with the measured page of hashes. Returns only if all are equal.
VOID
ReadParts (
  OUT PARTS  *Parts
  );

/// Installs ACPI tables that are built in. Nothing of the host's is in them but the number of processors.
VOID
InstallTables (
  VOID
  );

#endif
