/** @file
  ACPI tables of a q35 machine, built in: what the host offers instead is never read.

  Source: ACPI Specification 6.3; PCI Firmware Specification 3.2, section 4.1.2 (MCFG); Intel ICH9 datasheet, section
  13.8 (power management); QEMU, hw/i386/acpi-build.c, for the values of a q35 machine.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include <Guid/Acpi.h>
#include <IndustryStandard/Acpi63.h>
#include <IndustryStandard/MemoryMappedConfigurationSpaceAccessTable.h>
#include <Library/BaseLib.h>
#include <Library/BaseMemoryLib.h>
#include <Library/PcdLib.h>
#include <Library/UefiBootServicesTableLib.h>
#include <Protocol/MpService.h>
#include "Boot.h"

extern UINT8  dsdt_aml_code[];

#define OEM_ID        { 'O', 'P', 'N', 'R', 'L', 'Y' }
#define OEM_TABLE_ID  SIGNATURE_64 ('R', 'E', 'L', 'A', 'Y', ' ', ' ', ' ')
#define CREATOR_ID    SIGNATURE_32 ('O', 'R', 'L', 'Y')

#define HEADER(Signature, Type, Revision) \
  { Signature, sizeof (Type), Revision, 0, OEM_ID, OEM_TABLE_ID, 1, CREATOR_ID, 1 }

#define SYSTEM_IO(Bits, Access, Address)  { EFI_ACPI_6_3_SYSTEM_IO, Bits, 0, Access, Address }

/// Where power management of the ICH9 is; OvmfPkg/Library/PlatformInitLib puts it there.
#define PM_BASE  0x600
/// The interrupt of power management, and the I/O APIC.
#define SCI      9
#define IO_APIC  0xFEC00000
#define APIC     0xFEE00000

#pragma pack (1)
typedef struct {
  EFI_ACPI_6_3_MULTIPLE_APIC_DESCRIPTION_TABLE_HEADER    Header;
  EFI_ACPI_6_3_IO_APIC_STRUCTURE                         IoApic;
  EFI_ACPI_6_3_INTERRUPT_SOURCE_OVERRIDE_STRUCTURE       Override[2];
  EFI_ACPI_6_3_LOCAL_APIC_NMI_STRUCTURE                  Nmi;
  EFI_ACPI_6_3_PROCESSOR_LOCAL_APIC_STRUCTURE            Processor[MAX_PROCESSORS];
} MADT;

typedef struct {
  EFI_ACPI_MEMORY_MAPPED_CONFIGURATION_BASE_ADDRESS_TABLE_HEADER                           Header;
  EFI_ACPI_MEMORY_MAPPED_ENHANCED_CONFIGURATION_SPACE_BASE_ADDRESS_ALLOCATION_STRUCTURE    Space;
} MCFG;

typedef struct {
  EFI_ACPI_DESCRIPTION_HEADER    Header;
  UINT64                         Table[3];
} XSDT;

/// All tables, in memory that the kernel keeps.
typedef struct {
  EFI_ACPI_6_3_FIRMWARE_ACPI_CONTROL_STRUCTURE    Facs;   ///< On a multiple of 64 bytes.
  EFI_ACPI_6_3_FIXED_ACPI_DESCRIPTION_TABLE       Fadt;
  MADT                                            Madt;
  MCFG                                            Mcfg;
  XSDT                                            Xsdt;
  EFI_ACPI_6_3_ROOT_SYSTEM_DESCRIPTION_POINTER    Rsdp;
} TABLES;
#pragma pack ()

STATIC CONST TABLES  mTables = {
  {
    EFI_ACPI_6_3_FIRMWARE_ACPI_CONTROL_STRUCTURE_SIGNATURE,
    sizeof (EFI_ACPI_6_3_FIRMWARE_ACPI_CONTROL_STRUCTURE),
    0,
    0,
    0,
    0,
    0,
    EFI_ACPI_6_3_FIRMWARE_ACPI_CONTROL_STRUCTURE_VERSION
  },
  {
    .Header           = HEADER (EFI_ACPI_6_3_FIXED_ACPI_DESCRIPTION_TABLE_SIGNATURE, EFI_ACPI_6_3_FIXED_ACPI_DESCRIPTION_TABLE, EFI_ACPI_6_3_FIXED_ACPI_DESCRIPTION_TABLE_REVISION),
    .SciInt           = SCI,
    .Pm1aEvtBlk       = PM_BASE,
    .Pm1aCntBlk       = PM_BASE + 4,
    .PmTmrBlk         = PM_BASE + 8,
    .Gpe0Blk          = PM_BASE + 0x20,
    .Pm1EvtLen        = 4,
    .Pm1CntLen        = 2,
    .PmTmrLen         = 4,
    .Gpe0BlkLen       = 16,
    .PLvl2Lat         = 0xFFF,
    .PLvl3Lat         = 0xFFF,
    .IaPcBootArch     = EFI_ACPI_6_3_LEGACY_DEVICES | EFI_ACPI_6_3_VGA_NOT_PRESENT,
    .Flags            = EFI_ACPI_6_3_WBINVD | EFI_ACPI_6_3_PROC_C1 | EFI_ACPI_6_3_PWR_BUTTON | EFI_ACPI_6_3_SLP_BUTTON | EFI_ACPI_6_3_TMR_VAL_EXT | EFI_ACPI_6_3_RESET_REG_SUP,
    .ResetReg         = SYSTEM_IO (8, EFI_ACPI_6_3_BYTE, 0xCF9),
    .ResetValue       = 0x0F,
    .MinorVersion     = EFI_ACPI_6_3_FIXED_ACPI_DESCRIPTION_TABLE_MINOR_REVISION,
    .XPm1aEvtBlk      = SYSTEM_IO (32, EFI_ACPI_6_3_WORD, PM_BASE),
    .XPm1aCntBlk      = SYSTEM_IO (16, EFI_ACPI_6_3_WORD, PM_BASE + 4),
    .XPmTmrBlk        = SYSTEM_IO (32, EFI_ACPI_6_3_DWORD, PM_BASE + 8),
    .XGpe0Blk         = SYSTEM_IO (128, EFI_ACPI_6_3_BYTE, PM_BASE + 0x20),
  },
  {
    .Header = {
      HEADER (EFI_ACPI_6_3_MULTIPLE_APIC_DESCRIPTION_TABLE_SIGNATURE, MADT, EFI_ACPI_6_3_MULTIPLE_APIC_DESCRIPTION_TABLE_REVISION),
      APIC,
      EFI_ACPI_6_3_PCAT_COMPAT
    },
    .IoApic = { EFI_ACPI_6_3_IO_APIC, sizeof (EFI_ACPI_6_3_IO_APIC_STRUCTURE), 0, 0, IO_APIC, 0 },
    // The timer is at input 2; the interrupt of power management is active high, by level.
    .Override = {
      { EFI_ACPI_6_3_INTERRUPT_SOURCE_OVERRIDE, sizeof (EFI_ACPI_6_3_INTERRUPT_SOURCE_OVERRIDE_STRUCTURE), 0, 0, 2, 0 },
      { EFI_ACPI_6_3_INTERRUPT_SOURCE_OVERRIDE, sizeof (EFI_ACPI_6_3_INTERRUPT_SOURCE_OVERRIDE_STRUCTURE), 0, SCI, SCI, 0xD }
    },
    .Nmi = { EFI_ACPI_6_3_LOCAL_APIC_NMI, sizeof (EFI_ACPI_6_3_LOCAL_APIC_NMI_STRUCTURE), 0xFF, 0, 1 },
  },
  {
    {
      HEADER (EFI_ACPI_6_3_PCI_EXPRESS_MEMORY_MAPPED_CONFIGURATION_SPACE_BASE_ADDRESS_DESCRIPTION_TABLE_SIGNATURE, MCFG, EFI_ACPI_MEMORY_MAPPED_CONFIGURATION_SPACE_ACCESS_TABLE_REVISION),
      0
    },
    { FixedPcdGet64 (PcdPciExpressBaseAddress), 0, 0, 0xFF, 0 }
  },
  {
    HEADER (EFI_ACPI_6_3_EXTENDED_SYSTEM_DESCRIPTION_TABLE_SIGNATURE, XSDT, EFI_ACPI_6_3_EXTENDED_SYSTEM_DESCRIPTION_TABLE_REVISION),
  },
  {
    EFI_ACPI_6_3_ROOT_SYSTEM_DESCRIPTION_POINTER_SIGNATURE,
    0,
    OEM_ID,
    EFI_ACPI_6_3_ROOT_SYSTEM_DESCRIPTION_POINTER_REVISION,
    0,
    sizeof (EFI_ACPI_6_3_ROOT_SYSTEM_DESCRIPTION_POINTER),
    0,
    0
  }
};

STATIC
VOID
Seal (
  IN OUT EFI_ACPI_DESCRIPTION_HEADER  *Header
  )
{
  Header->Checksum = 0;
  Header->Checksum = CalculateCheckSum8 ((UINT8 *)Header, Header->Length);
}

/// Lists the processors that the firmware has started itself, and takes what is left off the table's end.
STATIC
VOID
ListProcessors (
  IN OUT MADT  *Madt
  )
{
  EFI_MP_SERVICES_PROTOCOL   *Mp;
  EFI_PROCESSOR_INFORMATION  Info;
  UINTN                      Count;
  UINTN                      Enabled;
  UINTN                      Index;

  Require (!EFI_ERROR (gBS->LocateProtocol (&gEfiMpServiceProtocolGuid, NULL, (VOID **)&Mp)));
  Require (!EFI_ERROR (Mp->GetNumberOfProcessors (Mp, &Count, &Enabled)));
  Require (Count >= 1 && Count <= MAX_PROCESSORS);
  for (Index = 0; Index < Count; Index++) {
    Require (!EFI_ERROR (Mp->GetProcessorInfo (Mp, Index, &Info)));
    Require (Info.ProcessorId < 0xFF);
    Madt->Processor[Index].Type             = EFI_ACPI_6_3_PROCESSOR_LOCAL_APIC;
    Madt->Processor[Index].Length           = sizeof (Madt->Processor[Index]);
    Madt->Processor[Index].AcpiProcessorUid = (UINT8)Index;
    Madt->Processor[Index].ApicId           = (UINT8)Info.ProcessorId;
    Madt->Processor[Index].Flags            = EFI_ACPI_6_3_LOCAL_APIC_ENABLED;
  }

  Madt->Header.Header.Length -= (UINT32)((MAX_PROCESSORS - Count) * sizeof (Madt->Processor[0]));
}

VOID
InstallTables (
  VOID
  )
{
  EFI_PHYSICAL_ADDRESS         Address;
  EFI_ACPI_DESCRIPTION_HEADER  *Dsdt;
  TABLES                       *Tables;
  UINTN                        Pages;

  Dsdt  = (EFI_ACPI_DESCRIPTION_HEADER *)dsdt_aml_code;
  Pages = EFI_SIZE_TO_PAGES (sizeof (TABLES) + Dsdt->Length);
  Require (!EFI_ERROR (gBS->AllocatePages (AllocateAnyPages, EfiACPIReclaimMemory, Pages, &Address)));
  Tables = (TABLES *)(UINTN)Address;
  ZeroMem (Tables, EFI_PAGES_TO_SIZE (Pages));
  CopyMem (Tables, &mTables, sizeof (mTables));
  Dsdt = CopyMem (Tables + 1, dsdt_aml_code, Dsdt->Length);

  ListProcessors (&Tables->Madt);
  Tables->Fadt.FirmwareCtrl  = (UINT32)(UINTN)&Tables->Facs;
  Tables->Fadt.Dsdt          = (UINT32)(UINTN)Dsdt;
  Tables->Fadt.XDsdt         = (UINTN)Dsdt;
  Tables->Xsdt.Table[0]      = (UINTN)&Tables->Fadt;
  Tables->Xsdt.Table[1]      = (UINTN)&Tables->Madt;
  Tables->Xsdt.Table[2]      = (UINTN)&Tables->Mcfg;
  Tables->Rsdp.XsdtAddress   = (UINTN)&Tables->Xsdt;
  // A machine whose low memory is that high has none of the shapes that are measured.
  Require (Address + EFI_PAGES_TO_SIZE (Pages) <= MAX_UINT32);

  Seal (&Tables->Fadt.Header);
  Seal (&Tables->Madt.Header.Header);
  Seal (&Tables->Mcfg.Header.Header);
  Seal (&Tables->Xsdt.Header);
  Tables->Rsdp.Checksum         = CalculateCheckSum8 ((UINT8 *)&Tables->Rsdp, 20);
  Tables->Rsdp.ExtendedChecksum = CalculateCheckSum8 ((UINT8 *)&Tables->Rsdp, sizeof (Tables->Rsdp));
  Require (!EFI_ERROR (gBS->InstallConfigurationTable (&gEfiAcpi20TableGuid, &Tables->Rsdp)));
}
