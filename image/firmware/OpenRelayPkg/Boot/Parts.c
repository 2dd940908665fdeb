/** @file
  Reads what is started and verifies it before anything looks inside.

  A part is read once, into memory that belongs to the guest alone, and its hash is that of this copy: the host cannot
  change it afterwards. All three are verified together, before any of them is used.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include <Library/BaseMemoryLib.h>
#include <Library/PcdLib.h>
#include <Library/QemuFwCfgLib.h>
#include <Library/UefiBootServicesTableLib.h>
#include "Boot.h"

#define SHA256_DIGEST_SIZE  32

/// Of mbed TLS: 0 when it has succeeded. Source: mbedtls/sha256.h.
int
mbedtls_sha256 (
  const unsigned char  *Input,
  UINTN                Length,
  unsigned char        *Output,
  int                  Is224
  );

#define MAX_KERNEL        SIZE_64MB
#define MAX_INITRD        SIZE_128MB
#define MAX_COMMAND_LINE  SIZE_2KB

/// Where one part is: as a named item, or as numbered ones, whose contents follow each other.
typedef struct {
  CONST CHAR8             *Name;
  FIRMWARE_CONFIG_ITEM    Size[2];
  FIRMWARE_CONFIG_ITEM    Data[2];
  UINTN                   Count;
  UINT32                  Limit;
  GUID                    Hash;
} PLACE;

STATIC CONST PLACE  mKernel = {
  "etc/boot/kernel",
  { QemuFwCfgItemKernelSetupSize, QemuFwCfgItemKernelSize },
  { QemuFwCfgItemKernelSetupData, QemuFwCfgItemKernelData },
  2,
  MAX_KERNEL,
  { 0x4de79437, 0xabd2, 0x427f, { 0xb8, 0x35, 0xd5, 0xb1, 0x72, 0xd2, 0x04, 0x5b } }
};

STATIC CONST PLACE  mInitrd = {
  "etc/boot/initrd",
  { QemuFwCfgItemInitrdSize, 0 },
  { QemuFwCfgItemInitrdData, 0 },
  1,
  MAX_INITRD,
  { 0x44baf731, 0x3a2f, 0x4bd7, { 0x9a, 0xf1, 0x41, 0xe2, 0x91, 0x69, 0x78, 0x1d } }
};

STATIC CONST PLACE  mCommandLine = {
  "etc/boot/cmdline",
  { QemuFwCfgItemCommandLineSize, 0 },
  { QemuFwCfgItemCommandLineData, 0 },
  1,
  MAX_COMMAND_LINE,
  { 0x97d02dd8, 0xbd20, 0x4c94, { 0xaa, 0x78, 0xe7, 0x71, 0x4d, 0x36, 0xab, 0x2a } }
};

STATIC CONST GUID  mTable = {
  0x9438d606, 0x4f22, 0x4cc9, { 0xb4, 0x79, 0xa7, 0x93, 0xd4, 0x11, 0xfd, 0x21 }
};

#pragma pack (1)
/// A table or an entry of it. Source: QEMU, target/i386/sev.c, SevHashTable.
typedef struct {
  GUID      Guid;
  UINT16    Length;   ///< Of all of it, this header included.
} HEADER;

typedef struct {
  HEADER    Header;
  UINT8     Hash[SHA256_DIGEST_SIZE];
} ENTRY;

/// The three entries stand in this order: command line, initrd, kernel.
typedef struct {
  HEADER    Header;
  ENTRY     Entry[3];
} TABLE;
#pragma pack ()

STATIC
VOID
Allocate (
  OUT PART    *Part,
  IN  UINT32  Size
  )
{
  EFI_PHYSICAL_ADDRESS  Address;

  Require (!EFI_ERROR (gBS->AllocatePages (AllocateAnyPages, EfiLoaderData, EFI_SIZE_TO_PAGES ((UINTN)Size), &Address)));
  Part->Data = (UINT8 *)(UINTN)Address;
  Part->Size = Size;
}

STATIC
VOID
ReadPart (
  IN  CONST PLACE  *Place,
  OUT PART         *Part
  )
{
  FIRMWARE_CONFIG_ITEM  Item;
  UINTN                 NamedSize;
  UINTN                 Index;
  UINT32                Size[2];
  UINT32                Total;
  UINT32                At;

  if (!RETURN_ERROR (QemuFwCfgFindFile (Place->Name, &Item, &NamedSize))) {
    Require (NamedSize > 0 && NamedSize <= Place->Limit);
    Allocate (Part, (UINT32)NamedSize);
    QemuFwCfgSelectItem (Item);
    QemuFwCfgReadBytes (NamedSize, Part->Data);
    return;
  }

  Total = 0;
  for (Index = 0; Index < Place->Count; Index++) {
    QemuFwCfgSelectItem (Place->Size[Index]);
    Size[Index] = QemuFwCfgRead32 ();
    Require (Size[Index] <= Place->Limit - Total);
    Total += Size[Index];
  }

  Require (Total > 0);
  Allocate (Part, Total);
  At = 0;
  for (Index = 0; Index < Place->Count; Index++) {
    QemuFwCfgSelectItem (Place->Data[Index]);
    QemuFwCfgReadBytes (Size[Index], Part->Data + At);
    At += Size[Index];
  }
}

STATIC
VOID
Verify (
  IN CONST PART   *Part,
  IN CONST PLACE  *Place,
  IN CONST ENTRY  *Entry
  )
{
  UINT8  Hash[SHA256_DIGEST_SIZE];

  Require (CompareGuid (&Entry->Header.Guid, &Place->Hash) && (Entry->Header.Length == sizeof (ENTRY)));
  Require (mbedtls_sha256 (Part->Data, Part->Size, Hash, 0) == 0);
  Require (CompareMem (Hash, Entry->Hash, sizeof (Hash)) == 0);
}

VOID
ReadParts (
  OUT PARTS  *Parts
  )
{
  CONST TABLE  *Table;
  UINT32       Index;

  Require (QemuFwCfgIsAvailable ());
  Table = (CONST TABLE *)(UINTN)FixedPcdGet64 (PcdQemuHashTableBase);
  Require (sizeof (TABLE) <= FixedPcdGet32 (PcdQemuHashTableSize));
  Require (CompareGuid (&Table->Header.Guid, &mTable) && (Table->Header.Length == sizeof (TABLE)));

  ReadPart (&mCommandLine, &Parts->CommandLine);
  ReadPart (&mInitrd, &Parts->Initrd);
  ReadPart (&mKernel, &Parts->Kernel);
  Verify (&Parts->CommandLine, &mCommandLine, &Table->Entry[0]);
  Verify (&Parts->Initrd, &mInitrd, &Table->Entry[1]);
  Verify (&Parts->Kernel, &mKernel, &Table->Entry[2]);

  // Only its last byte is zero, and all others are ASCII: what was measured is what the kernel will see.
  for (Index = 0; Index + 1 < Parts->CommandLine.Size; Index++) {
    Require (Parts->CommandLine.Data[Index] >= 0x20 && Parts->CommandLine.Data[Index] < 0x7F);
  }

  Require (Parts->CommandLine.Data[Parts->CommandLine.Size - 1] == 0);
}
